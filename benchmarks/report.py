def write_document(r, p): pass
def print_overview(r, s): pass
