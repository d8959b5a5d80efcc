def write_table1(results, found, total):
    return f"{len(found)} of {total} cells"
