class Grammars:
    def __init__(self, tokenizer):
        pass

    def constraint(self, schema):
        raise NotImplementedError
