"""x"""
def comparison(runs, charts): raise NotImplementedError
