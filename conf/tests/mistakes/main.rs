//! Each mistake that a configuration can have, and what is said about it.

mod arrays;
mod disks;
mod network;
mod pools;
mod subsystems;
#[path = "../support/mod.rs"]
mod support;
mod syntax;

use corebay_conf::{Severity, parse, render_all};
use support::FakeMachine;

/// A right configuration, whose lines the cases replace.
const BASE: &str = r#"data_dir = "/data"
[reactor]
cores = [0]
[[listener]]
name = "main"
address = "127.0.0.1:4420"
[[disk]]
name = "disk-1"
ram = { size = "1GiB" }
[[subsystem]]
nqn = "nqn.2024-01.com.example:one"
allow_any_host = true
[[subsystem.namespace]]
disk = "disk-1"
"#;

/// A second subsystem, complete.
const SECOND: &str = r#"
[[disk]]
name = "disk-2"
ram = { size = "1GiB" }
[[subsystem]]
nqn = "nqn.2024-01.com.example:two"
allow_any_host = true
[[subsystem.namespace]]
disk = "disk-2"
"#;

fn shown(text: &str) -> (String, usize, usize) {
    let diagnostics = match parse(text, "corebay.toml", &FakeMachine::new()) {
        Ok((_, warnings)) => warnings,
        Err(diagnostics) => diagnostics,
    };
    let count = |severity| {
        diagnostics
            .iter()
            .filter(|one| one.severity == severity)
            .count()
    };
    let counts = (count(Severity::Error), count(Severity::Warning));
    (render_all(&diagnostics, false), counts.0, counts.1)
}

#[track_caller]
fn expect(text: &str, errors: usize, warnings: usize, fragments: &[&str]) {
    let (shown, errors_found, warnings_found) = shown(text);
    if std::env::var_os("SHOW").is_some() {
        println!("{shown}\n----");
    }
    for fragment in fragments {
        assert!(
            shown.contains(fragment),
            "`{fragment}` is not in:\n{shown}\nfor:\n{text}"
        );
    }
    assert_eq!(
        (errors_found, warnings_found),
        (errors, warnings),
        "{shown}\nfor:\n{text}"
    );
}

/// One error, when a line of the base is replaced.
#[track_caller]
fn instead(line: &str, other: &str, fragments: &[&str]) {
    assert!(BASE.contains(line), "{line}");
    expect(&BASE.replace(line, other), 1, 0, fragments);
}

/// One error, when the base goes on like this.
#[track_caller]
fn and(rest: &str, fragments: &[&str]) {
    expect(&format!("{BASE}{rest}"), 1, 0, fragments);
}

#[test]
fn the_base_is_right() {
    expect(BASE, 0, 0, &[]);
    expect(&format!("{BASE}{SECOND}"), 0, 0, &[]);
}

#[test]
fn place_caret_label_and_help() {
    let text = BASE.replace("size = \"1GiB\"", "size = \"8G\"");
    let (shown, ..) = shown(&text);
    let expected = "\
error: `G` is not a unit of size
 --> corebay.toml:9:16
  |
9 | ram = { size = \"8G\" }
  |                ^^^^ expected a size from 512B to 1EiB
  |
  = help: did you mean \"8GiB\"? (GiB is 2^30 bytes)

corebay.toml: 1 error
";
    assert_eq!(shown, expected);
}

#[test]
fn two_places() {
    let (shown, ..) = shown(&format!("{BASE}{}", SECOND.replace(":two", ":one")));
    let expected = "\
error: there are two subsystems named `nqn.2024-01.com.example:one`
  --> corebay.toml:20:7
   |
11 | nqn = \"nqn.2024-01.com.example:one\"
   |       ----------------------------- first here
...
20 | nqn = \"nqn.2024-01.com.example:one\"
   |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ again here

corebay.toml: 1 error
";
    assert_eq!(shown, expected);
}

/// A mistake in nearly every line.
const ALL_WRONG: &str = r#"
colour = "red"
data_dir = 7
[reactor]
cores = [0, 0, 9]
memory = "3MB"
hugepages = "maybe"
[transport.tcp]
queue_depht = 128
max_transfer = 5000
[[listener]]
address = "localhost:4420"
[[listener]]
address = "10.9.9.9:4420"
[[disk]]
name = "a"
file = { path = "gone.img" }
[[disk]]
name = "a"
size = "1GiB"
[[subsystem]]
nqn = "one"
hosts = ["nqn.2024-01.com.example:host", 3]
[[subsystem.namespace]]
nsid = 5000
disk = "b"
read_only = "true"
[log]
level = "loud"
"#;

#[test]
fn all_mistakes_in_one_pass() {
    let fragments = [
        "corebay.toml:2:1",
        "unknown key `colour`",
        "corebay.toml:3:12",
        "`data_dir` cannot be a number",
        "corebay.toml:5:13",
        "core 0 is named twice",
        "corebay.toml:5:16",
        "this machine has no core 9",
        "corebay.toml:6:10",
        "`memory` is out of range",
        "corebay.toml:7:13",
        "`hugepages` cannot be `maybe`",
        "corebay.toml:9:1",
        "did you mean `queue_depth`?",
        "corebay.toml:10:16",
        "expected 4KiB times a power of two",
        "corebay.toml:12:11",
        "names are not looked up: write \"127.0.0.1:4420\"",
        "corebay.toml:14:11",
        "this machine does not have the address 10.9.9.9",
        "corebay.toml:17:17",
        "the file `/var/lib/corebay/gone.img` does not exist",
        "corebay.toml:19:8",
        "there are two disks named `a`",
        "corebay.toml:20:1",
        "unknown key `size` in [[disk]]",
        "corebay.toml:18:1",
        "[[disk]] does not say what it is made of",
        "corebay.toml:22:7",
        "`one` is not an NQN",
        "corebay.toml:23:42",
        "`hosts` cannot be a number",
        "corebay.toml:25:8",
        "`nsid` is out of range",
        "corebay.toml:26:8",
        "there is no disk named `b`",
        "corebay.toml:27:13",
        "write it without quotes: true",
        "corebay.toml:29:9",
        "`level` cannot be `loud`",
        "20 errors, 1 warning",
    ];
    expect(ALL_WRONG, 20, 1, &fragments);
}

#[test]
fn warnings() {
    let unused = format!("{BASE}[[disk]]\nname = \"spare\"\nnull = {{ size = \"1TiB\" }}\n");
    expect(
        &unused,
        0,
        1,
        &["warning: the disk `spare` is not exported", ":16:8"],
    );
    // Of many disks one warning tells, so that others are seen beside it.
    let more = "[[disk]]\nname = \"other\"\nnull = { size = \"1TiB\" }\n";
    expect(
        &format!("{unused}{more}"),
        0,
        1,
        &[
            "warning: 2 disks are not exported, `spare` the first",
            ":16:8",
        ],
    );
    let empty = &BASE[..BASE.find("[[disk]]").unwrap()];
    expect(
        empty,
        0,
        1,
        &["there is no [[subsystem]]: this file exports nothing"],
    );
    let no_namespace = format!(
        "{BASE}[[subsystem]]\nnqn = \"nqn.2024-01.com.example:two\"\nallow_any_host = true\n"
    );
    expect(
        &no_namespace,
        0,
        1,
        &["this subsystem has no namespace: hosts will see no disk"],
    );
}

#[test]
fn too_many() {
    let listeners: String = (0..65)
        .map(|port| format!("[[listener]]\naddress = \"127.0.0.1:{}\"\n", 5000 + port))
        .collect();
    expect(
        &format!("{BASE}{listeners}"),
        1,
        0,
        &[
            "66 times `[[listener]]` is too many",
            "number 65: expected at most 64",
        ],
    );
    let hosts = vec!["\"nqn.2024-01.com.example:h\""; 1025].join(",");
    let (shown, errors, _) =
        shown(&BASE.replace("allow_any_host = true", &format!("hosts = [{hosts}]")));
    assert!(
        errors > 0
            && shown.contains("these are too many hosts")
            && shown.contains("923 more warnings are not shown"),
        "{shown}"
    );
    let wrong = "x = 1\n".repeat(200);
    let (shown, errors, _) = self::shown(&wrong);
    assert!(
        errors <= 101 && shown.contains("`x` is given twice"),
        "{shown}"
    );
}
