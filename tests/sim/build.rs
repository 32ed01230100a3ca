//! Makes the compiler know the cfg that deliberate faults are built with.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(corebay_fault)");
    println!("cargo::rerun-if-changed=build.rs");
}
