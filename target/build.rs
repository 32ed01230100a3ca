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
    println!("cargo:rerun-if-changed=build.rs");
}
