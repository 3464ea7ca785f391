"""English text that ships: a document, questions about it, passages cut from it."""

from moska.host.llm.text.passages import continuation, handbook, questions, recall

__all__ = ["continuation", "handbook", "questions", "recall"]
