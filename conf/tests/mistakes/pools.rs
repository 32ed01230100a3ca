//! Mistakes in `[[pool]]`, and in namespaces that name volumes.

use super::{expect, shown};

/// A right configuration of a pool, whose lines the cases replace.
const POOL: &str = r#"data_dir = "/data"
[[listener]]
address = "127.0.0.1:4420"
[[disk]]
name = "a"
ram = { size = "64MiB" }
[[disk]]
name = "b"
ram = { size = "64MiB" }
[[pool]]
name = "p"
disk = "a"
create = true
warn_at = 90
[[subsystem]]
nqn = "nqn.2024-01.com.example:one"
allow_any_host = true
[[subsystem.namespace]]
volume = "p/v"
[[subsystem.namespace]]
disk = "b"
"#;

#[track_caller]
fn instead(line: &str, other: &str, fragments: &[&str]) {
    assert!(POOL.contains(line), "{line}");
    let (shown, errors, _) = shown(&POOL.replacen(line, other, 1));
    for fragment in fragments {
        assert!(shown.contains(fragment), "`{fragment}` is not in:\n{shown}");
    }
    assert_eq!(errors, 1, "{shown}");
}

#[test]
fn a_right_one() {
    expect(POOL, 0, 0, &[]);
    // What is exported, the pool itself knows.
    let (without, _) = POOL.split_once("[[subsystem]]").unwrap();
    let without = without.replace("[[disk]]\nname = \"b\"\nram = { size = \"64MiB\" }\n", "");
    expect(&without, 0, 0, &[]);
}

#[test]
fn what_a_pool_lies_on_is_its_own() {
    instead(
        "volume = \"p/v\"",
        "disk = \"a\"",
        &[
            "`a` is the store of the pool `p`",
            "export a volume of the pool",
        ],
    );
    instead(
        "warn_at = 90",
        "[[pool]]\nname = \"q\"\ndisk = \"a\"",
        &["`a` is used twice", "beneath the pool `q`"],
    );
    instead(
        "warn_at = 90",
        "[[array]]\nname = \"r\"\nlevel = \"raid0\"\nmembers = [\"a\"]",
        &["`a` is used twice: as a member of the array `r`"],
    );
    instead("disk = \"a\"", "disk = \"c\"", &["no disk named `c`"]);
    instead(
        "ram = { size = \"64MiB\" }",
        "null = { size = \"64MiB\" }",
        &["a pool cannot lie on a `null` disk"],
    );
}

#[test]
fn names_and_bounds() {
    instead("name = \"p\"\n", "", &["[[pool]] has no `name`"]);
    let second =
        "[[disk]]\nname = \"c\"\nram = { size = \"64MiB\" }\n[[pool]]\nname = \"p\"\ndisk = \"c\"";
    instead("warn_at = 90", second, &["there are two pools named `p`"]);
}

#[test]
fn a_namespace_names_a_volume_of_a_pool() {
    instead(
        "\"p/v\"",
        "\"q/v\"",
        &["names no volume of a pool", "the pools are `p`"],
    );
    instead("\"p/v\"", "\"v\"", &["expected \"pool/volume\""]);
    instead(
        "volume = \"p/v\"",
        "volume = \"p/v\"\ndisk = \"b\"",
        &["a disk or a volume, not both"],
    );
    instead(
        "disk = \"b\"\n",
        "volume = \"p/v\"\n",
        &["the volume `p/v` is exported twice"],
    );
    instead("warn_at = 90", "warn_at = 101", &["101"]);
    instead(
        "warn_at = 90",
        "warn_at = 90\ncritical_at = 89",
        &["`critical_at` is below `warn_at`", "expected 90 to 100"],
    );
}
