"""The figures of docs/theory.md, all in closed form: nothing is trained."""
