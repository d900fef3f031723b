"""Print the README's first example as a program, with what it assumes its reader to have: `make dist` runs it."""

import pages


def first_example() -> str:
    """All Python up to and with the first block that a reader sees."""
    parts: list[str] = []
    text = (pages.ROOT / "README.md").read_text(encoding="utf-8")
    for found in pages.FENCE.finditer(text):
        if found["hidden"] is not None:
            parts.append(found["hidden"])
        elif found["kind"] == "python":
            return "\n".join([*parts, found["code"]])
    raise AssertionError("README.md has no Python")


if __name__ == "__main__":
    print(first_example())
