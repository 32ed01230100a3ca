//! Mistakes of TOML itself, and of keys and types.

use super::{and, instead, shown};

#[test]
fn without_quotes() {
    instead(
        "ram = { size = \"1GiB\" }",
        "ram = { size = 1GiB }",
        &["a text needs quotes", ":9:16", "write \"1GiB\""],
    );
    instead(
        "\"127.0.0.1:4420\"",
        "127.0.0.1:4420",
        &["a text needs quotes", ":6:11", "write \"127.0.0.1:4420\""],
    );
    instead(
        "\"127.0.0.1:4420\"",
        "[::1]:4420",
        &["a text needs quotes", ":6:11", "write \"[::1]:4420\""],
    );
    instead(
        "allow_any_host = true",
        "allow_any_host = yes",
        &[
            "`allow_any_host` cannot be this",
            "expected `true` or `false`",
        ],
    );
}

#[test]
fn given_twice() {
    instead(
        "cores = [0]",
        "cores = [0]\ncores = [1]",
        &["`cores` is given twice", ":4:1", "first here", "again here"],
    );
    instead(
        "name = \"disk-1\"",
        "name = \"disk-1\"\nname = \"disk-1\"",
        &["`name` is given twice", ":9:1", "8 | name"],
    );
    instead(
        "size = \"1GiB\"",
        "size = \"1GiB\", size = \"1GiB\"",
        &["`size` is given twice", ":9:24"],
    );
    and(
        "[reactor]\n",
        &["`reactor` is given twice", ":15:2", "2 | [reactor]"],
    );
}

#[test]
fn structure() {
    instead(
        "name = \"main\"",
        "name = \"main",
        &["invalid basic string", ":5:13", "expected `\"`"],
    );
    instead(
        "[reactor]",
        "[reactor",
        &["unclosed table", ":2:9", "expected `]`"],
    );
    instead(
        "cores = [0]",
        "cores = [0",
        &[
            "this `[` is never closed",
            ":3:9",
            "4 | [[listener]]",
            "still open here",
        ],
    );
    instead(
        "ram = { size = \"1GiB\" }",
        "ram = { size = \"1GiB\"",
        &["this `{` is never closed", ":9:7"],
    );
    instead(
        "disk = \"disk-1\"",
        "disk = [\"disk-1\"",
        &["this `[` is never closed", ":14:8"],
    );
    instead(
        "allow_any_host = true",
        "allow_any_host = True",
        &["`True` is no value", "write true"],
    );
    instead(
        "name = \"main\"",
        "name: \"main\"",
        &["invalid unquoted key", ":5:5", "joined by `=`"],
    );
    instead(
        "name = \"main\"",
        "// main",
        &["invalid unquoted key", "comments begin with `#`"],
    );
    instead(
        "cores = [0]",
        "memory = 256MiB // main",
        &["a text needs quotes", "comments begin with `#`"],
    );
    instead(
        "name = \"main\"",
        "name",
        &["key with no value", ":5:5", "expected `=`"],
    );
    and("x = \"\\q\"\n", &["missing escaped value", ":15:7"]);
}

#[test]
fn a_key_at_the_head_that_belongs_to_a_table() {
    let places = [
        (
            "[reactor]",
            &["cores", "memory", "hugepages", "idle_sleep"][..],
        ),
        ("[log]", &["level", "format"]),
        (
            "[transport.tcp]",
            &["queue_depth", "io_queues", "in_capsule"],
        ),
        ("[transport.tcp]", &["header_digest", "max_transfer"]),
        ("[[listener]]", &["address", "subsystems"]),
        ("[[disk]]", &["file", "device", "ram", "null", "nvme"]),
        ("[[disk]]", &["block_size"]),
        ("[[subsystem]]", &["nqn", "hosts", "serial", "listeners"]),
        ("[[subsystem]]", &["allow_any_host"]),
    ];
    for (table, keys) in places {
        for key in keys {
            let (said, ..) = shown(&format!("{key} = true\n"));
            let unknown = format!("unknown key `{key}`");
            let help = format!("`{key}` belongs below {table}");
            assert!(said.contains(&unknown) && said.contains(&help), "{said}");
            let (said, ..) = shown(&format!("{table}\n{key} = true\n"));
            assert!(!said.contains("unknown key"), "{said}");
        }
    }
    instead(
        "data_dir = \"/data\"",
        "cores = [0, 1]",
        &["unknown key `cores`", "`cores` belongs below [reactor]"],
    );
}

#[test]
fn types() {
    instead(
        "data_dir = \"/data\"",
        "data-dir = \"/data\"",
        &["unknown key `data-dir`", "did you mean `data_dir`?"],
    );
    instead(
        "cores = [0]",
        "core = [0]",
        &["unknown key `core` in [reactor]", "did you mean `cores`?"],
    );
    instead(
        "cores = [0]",
        "cores = 0",
        &[
            "`cores` cannot be a number",
            "expected a list of CPU numbers, as in [0, 1]",
        ],
    );
    instead(
        "cores = [0]",
        "cores = [0.5]",
        &["`cores` cannot be a number with a fraction"],
    );
    instead(
        "cores = [0]",
        "cores = [-1]",
        &["`cores` is out of range", "expected numbers from 0 to 8191"],
    );
    instead(
        "cores = [0]",
        "cores = []",
        &["an appliance needs at least one core"],
    );
    instead(
        "allow_any_host = true",
        "allow_any_host = \"true\"",
        &[
            "`allow_any_host` cannot be a text",
            "write it without quotes: true",
        ],
    );
    instead(
        "ram = { size = \"1GiB\" }",
        "ram = \"1GiB\"",
        &[
            "`ram` cannot be a text",
            "expected a table: `ram = { size = \"1GiB\" }`",
        ],
    );
}

#[test]
fn tables() {
    instead(
        "ram = { size = \"1GiB\" }",
        "ram = { }",
        &["`ram` has no `size`", "add `size = \"1GiB\"`"],
    );
    instead(
        "ram = { size = \"1GiB\" }",
        "ram = { size = \"1GiB\", sparse = true }",
        &[
            "unknown key `sparse` in `ram`",
            "the keys of `ram` are `size`",
        ],
    );
    instead(
        "[reactor]\ncores = [0]",
        "[reactor]\n[reactor.numa]",
        &["unknown key `numa` in [reactor]"],
    );
    instead(
        "[reactor]\ncores = [0]",
        "reactor = 4",
        &[
            "`reactor` cannot be a number",
            "expected a table: `[reactor]`",
        ],
    );
    and(
        "[referral]\naddress = \"10.0.0.1:8009\"\n",
        &[
            "`referral` is a list of tables",
            "write `[[referral]]` in double brackets",
        ],
    );
    and(
        "[transport]\nrdma = {}\n",
        &["unknown key `rdma` in [transport]"],
    );
    and(
        "[[volume]]\nname = \"v\"\n",
        &["unknown key `volume`", "the keys of the file are"],
    );
    and(
        "[log]\nlevel = \"Debug\"\n",
        &["`level` cannot be `Debug`", "did you mean \"debug\"?"],
    );
    and(
        "[log]\nformat = 2020-01-01\n",
        &["`format` cannot be a date"],
    );
}
