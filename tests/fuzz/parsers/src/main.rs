//! libFuzzer's loop around the parsers; tests/fuzz/parsers.sh builds and runs it.
#![no_main]

#[allow(dead_code, unsafe_code)]
mod product {
    include!(concat!(env!("OUT_DIR"), "/product.rs"));
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| product::parsers::one(bytes));
