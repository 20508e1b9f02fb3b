//! Makes a module of the product's main.rs, and puts what fuzzes it inside, where its private parts can be reached.

use std::path::PathBuf;

fn main() {
    let here = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let source = std::fs::canonicalize(here.join("../../../src")).expect("the product's sources");
    let text = std::fs::read_to_string(source.join("main.rs")).expect("main.rs");
    let (text, _tests) = text.split_once("#[cfg(test)]").expect("the unit tests come last");
    let text: String = text.lines().filter(|line| !line.starts_with("//!")).map(|line| format!("{line}\n")).collect();
    let text = text.replace("\"worker.py\"", &format!("{:?}", source.join("worker.py")));
    let text = format!("{text}\n#[path = {:?}]\npub mod parsers;\n", here.join("src/parsers.rs"));
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("set by cargo")).join("product.rs");
    std::fs::write(out, text).expect("room for a copy");
    println!("cargo:rerun-if-changed={}", source.display());
}
