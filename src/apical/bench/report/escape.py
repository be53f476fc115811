"""Text of others made harmless where it is put."""


def for_spreadsheet(text: str) -> str:
    """Text a spreadsheet will not run as a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def for_markdown(text: str) -> str:
    """Text that stays text in a cell of a Markdown table."""
    for character in "\\|*_`":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
