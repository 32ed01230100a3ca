//! Refuses to build into this crate's own folder, whose name is cargo's default build folder.
use std::{env, path::Path};

fn main() {
    let here = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    assert!(
        !Path::new(&out).starts_with(&here),
        "the build folder lies inside the sources ({out}); run cargo from the repository, where \
         .cargo/config.toml sets build.target-dir = \".build\""
    );
    // Deliberate faults, for the simulator's proof alone: see src/fault.rs.
    println!("cargo::rustc-check-cfg=cfg(corebay_fault)");
    let faulty = env::var_os("CARGO_CFG_COREBAY_FAULT").is_some();
    let profile = env::var("PROFILE").expect("cargo sets PROFILE");
    assert!(
        !faulty || profile == "debug",
        "deliberate faults are not for release builds: take `--cfg corebay_fault` out of RUSTFLAGS"
    );
    println!("cargo:rerun-if-changed=build.rs");
}
