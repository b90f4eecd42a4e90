"""LUFFY inside trainers that others wrote. Each module needs the library it is for, and nothing else here needs it."""
