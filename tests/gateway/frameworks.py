"""A program for `.venv-frameworks`: prints what LangChain and LlamaIndex make of the gateway at the URL given."""

import json
import sys

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from llama_index.embeddings.openai import OpenAIEmbedding

url, texts = f"{sys.argv[1]}/v1", json.loads(sys.argv[2])
# LangChain counts tokens as OpenAI's models have them, and sends these, unless it is told that others' are others.
chain = OpenAIEmbeddings(base_url=url, api_key="none", model="simulated", check_embedding_ctx_length=False)
index = OpenAIEmbedding(api_base=url, api_key="none", model_name="simulated")
chat = ChatOpenAI(base_url=url, api_key="none", model="simulated", temperature=0)
said = {
    "langchain": chain.embed_documents(texts),
    "langchain_query": chain.embed_query(texts[0]),
    "llamaindex": index.get_text_embedding_batch(texts),
    "chat": chat.invoke("Go on.").content,
    "streamed": "".join(str(chunk.content) for chunk in chat.stream("Go on.")),
}
print(json.dumps(said))
