"""Index documents and ask them questions, with LangChain and its classes for OpenAI, through a gateway.

    pip install langchain-openai
    impetus serve                                       # http://127.0.0.1:8000/v1
    python rag_index.py docs/ "How long does a lease last?"

Vectors and answers come from your own Macs: only the base URL is other than OpenAI's.
"""

import os
import sys
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import OpenAI

BASE_URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")
served = {model.to_dict()["role"]: model.id for model in OpenAI(base_url=BASE_URL, api_key=KEY).models.list()}
# LangChain counts tokens as OpenAI's models have them, and sends these, unless it is told not to.
embeddings = OpenAIEmbeddings(
    base_url=BASE_URL, api_key=KEY, model=served["embedding"], check_embedding_ctx_length=False
)
chat = ChatOpenAI(base_url=BASE_URL, api_key=KEY, model=served["generation"], max_tokens=200)


def paragraphs(folder: Path) -> list[Document]:
    return [
        Document(paragraph, metadata={"file": path.name})
        for path in sorted(folder.glob("*.md"))
        for paragraph in path.read_text().split("\n\n")
        if len(paragraph) > 40
    ]


def main() -> None:
    folder, question = Path(sys.argv[1]), sys.argv[2]
    store = InMemoryVectorStore.from_documents(paragraphs(folder), embeddings)
    found = store.similarity_search(question, k=3)
    context = "\n\n".join(document.page_content for document in found)
    answer = chat.invoke(f"Answer from this alone:\n\n{context}\n\nQuestion: {question}")
    print(answer.content)
    print("from:", ", ".join(sorted({document.metadata["file"] for document in found})), file=sys.stderr)


if __name__ == "__main__":
    main()
