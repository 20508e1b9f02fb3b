//! One integration crate: it starts the real binary and talks to it as a host would.
//!
//! | module | what it holds |
//! |---|---|
//! | client | a host: starts servers, sends and receives with deadlines, keeps the transcript |
//! | procs | what the kernel says about processes; waiting until something is so |
//! | tokens | counts the tokens of Rust and Python, for tidy |
//! | protocol | what comes on stdin, and what goes out on stdout |
//! | shutdown | the ways a server ends, and what is left behind: nothing |
//! | cells | the world that a cell's code sees, and how a cell ends |
//! | background | the loop of top-level await between cells |
//! | abuse | what user code may patch, close, replace or fork |
//! | output | what a cell answers: order, completeness, truncation, files |
//! | pictures | figures and images: blocks, files, events, limits |
//! | packages | the builtin's environment, and what an import installs |
//! | interrupts | time-outs, interrupts, deaths, and what is said of them |
//! | tools | the nine tools and their contracts |
//! | habits | what people are used to from notebooks |
//! | host | what the server learns about the process that started it |
//! | bridge | HTTP on the session's socket: requests, streams, hang-ups, names |
//! | repl | the console that the client is at a terminal, in a real pseudo-terminal |
//! | shell | the client: options, exit codes, streams, finding the session |
//! | install | `mcp-py install`, `uninstall`, `doctor`, roles, and the README's commands in the shell |
//! | waits | calls that end before their cells, interrupts, restarts, the history |
//! | messages | what the program says when something is wrong, word by word |
//! | tidy | promises about the source itself and the README |

mod client;
mod procs;
mod tokens;

mod abuse;
mod background;
mod bridge;
mod cells;
mod habits;
mod host;
mod install;
mod interrupts;
mod messages;
mod output;
mod packages;
mod pictures;
mod protocol;
mod repl;
mod shell;
mod shutdown;
mod tidy;
mod tools;
mod waits;
