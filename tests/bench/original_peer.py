"""The Python original, to stand beside ours on Linux: bench.py --peer original='PYTHON /…/tests/bench/original_peer.py'.

PYTHON needs its package, installed editable (README.md beside this file). At its start it looks for a Claude Code above it by Apple's
code signature, which no process has here, so this takes the parent process instead. All else is its own.
"""
import os
import pathlib
import types

from python_interpreter import service
from python_interpreter.mcp import main

parent = types.SimpleNamespace(
    claude_pid=os.getppid(), session_id="bench", project_dir=pathlib.Path.cwd(), claude_version="2.1.197")
service.ClaudeContext.from_pid_walk = lambda: parent
main.main()
