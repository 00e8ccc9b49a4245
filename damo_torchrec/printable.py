"""Texts of others, such as the names of tables, where characters may do something: on terminals, and in pages."""


def printable(text: str) -> str:
    """The text, or what Python has for it if some of it is no sign: control characters, or what turns the direction."""
    return text if text.isprintable() else repr(text)
