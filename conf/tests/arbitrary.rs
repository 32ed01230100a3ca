//! Whatever the input: no panic, a verdict in bounded time, and diagnostics that can be shown.

mod support;

use std::path::Path;

use corebay_conf::limits::{DIAGNOSTICS_MAX, FILE_BYTES_MAX};
use corebay_conf::{Severity, parse, render_all};
use proptest::prelude::*;
use support::FakeMachine;

/// What holds for every input.
fn hold(text: &str) {
    match parse(text, "corebay.toml", &FakeMachine::large()) {
        Ok((appliance, warnings)) => {
            assert!(warnings.iter().all(|one| one.severity == Severity::Warning));
            assert!(!appliance.listeners().is_empty());
            for subsystem in appliance.subsystems() {
                assert!(!subsystem.nqn.is_discovery() && !subsystem.listeners.is_empty());
                for namespace in &subsystem.namespaces {
                    assert!((1..=subsystem.max_namespaces).contains(&namespace.nsid));
                    appliance.store_name(namespace.store);
                }
            }
            render_all(&warnings, true);
        }
        Err(diagnostics) => {
            assert!(
                diagnostics
                    .iter()
                    .any(|one| one.severity == Severity::Error)
            );
            assert!(diagnostics.len() <= 2 * DIAGNOSTICS_MAX + 2);
            let shown = render_all(&diagnostics, false);
            assert!(
                !shown.is_empty() && !shown.contains("a mistake of corebay"),
                "{shown}"
            );
        }
    }
}

fn examples() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let files = std::fs::read_dir(folder).unwrap();
    let mut texts: Vec<String> = files
        .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    texts.sort();
    texts
}

/// Pieces that mean something to the parser, to put where they do not belong.
const PIECES: [&str; 40] = [
    "\"",
    "'",
    "\"\"\"",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ",",
    ".",
    "#",
    "\n",
    "\r\n",
    "\t",
    "\u{0}",
    "\u{feff}",
    "é",
    "[disk]",
    "[[disk]]",
    "[[listener]]",
    "[subsystem.namespace]",
    "[[subsystem.namespace]]",
    "disk.file",
    "= [[[[",
    "name = \"x\"\n",
    "nsid = 0x10\n",
    "true",
    "1_000",
    "-1",
    "1e400",
    "nan",
    "2020-01-01",
    "\"8EiB\"",
    "18446744073709551616",
    "\\u0000",
    "nqn.2014-08.org.nvmexpress.discovery",
    "hosts = []\n",
    "[[subsystem]]\n",
];

#[derive(Clone, Debug)]
enum Change {
    Insert(usize, usize),
    Delete(usize, usize),
    Repeat(usize, usize),
    Flip(usize, u8),
    SwapLines(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<usize>(), 0..PIECES.len()).prop_map(|(at, piece)| Change::Insert(at, piece)),
        (any::<usize>(), 1_usize..40).prop_map(|(at, length)| Change::Delete(at, length)),
        (any::<usize>(), 1_usize..200).prop_map(|(at, length)| Change::Repeat(at, length)),
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Change::Flip(at, byte)),
        (any::<usize>(), any::<usize>()).prop_map(|(one, other)| Change::SwapLines(one, other)),
    ]
}

fn changed(text: &str, changes: &[Change]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for change in changes {
        let length = bytes.len().max(1);
        match *change {
            Change::Insert(at, piece) => {
                let at = at % length;
                bytes.splice(at..at, PIECES[piece].bytes());
            }
            Change::Delete(at, count) => {
                let at = at % length;
                bytes.drain(at..(at + count).min(bytes.len()));
            }
            Change::Repeat(at, count) => {
                let at = at % length;
                let part = bytes[at..(at + count).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            Change::Flip(at, byte) => {
                let at = at % length;
                bytes.splice(at..(at + 1).min(bytes.len()), [byte]);
            }
            Change::SwapLines(one, other) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
                let count = lines.len().max(1);
                if !lines.is_empty() {
                    lines.swap(one % count, other % count);
                }
                bytes = lines.concat().into_bytes();
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        hold(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn arbitrary_pieces(pieces in proptest::collection::vec(0..PIECES.len(), 0..200)) {
        hold(&pieces.into_iter().map(|piece| PIECES[piece]).collect::<String>());
    }

    #[test]
    fn changed_examples(
        example in any::<prop::sample::Index>(),
        changes in proptest::collection::vec(change(), 1..8),
    ) {
        let examples = examples();
        hold(&changed(&examples[example.index(examples.len())], &changes));
    }
}

/// More than usual where it is asked for: PROPTEST_CASES=100000.
fn cases() -> u32 {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    asked.unwrap_or(400)
}

#[test]
fn every_prefix_of_every_example() {
    for text in examples() {
        for (end, _) in text.char_indices().step_by(7) {
            hold(&text[..end]);
        }
    }
}

#[test]
fn every_line_left_out() {
    for text in examples() {
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        for left_out in 0..lines.len() {
            let rest = lines.iter().enumerate().filter(|(at, _)| *at != left_out);
            hold(&rest.map(|(_, line)| *line).collect::<String>());
        }
    }
}

#[test]
fn as_long_as_can_be() {
    // Up to this length every mistake is gathered, beyond it the first alone.
    const GATHERED_BYTES_MAX: usize = 256 << 10;
    let filled = |bytes: usize, piece: &str| piece.repeat(bytes / piece.len());
    let pieces = [
        "[",
        "[[a]]\n",
        "a.",
        "x = 1\n",
        "\n",
        "\"",
        "a = [{b={c=[",
        "[[disk]]\n",
        "x = y\n",
    ];
    for piece in pieces {
        hold(&filled(GATHERED_BYTES_MAX, piece));
    }
    for piece in ["[", "[[disk]]\n"] {
        hold(&filled(FILE_BYTES_MAX, piece));
    }
    let numbers = filled(FILE_BYTES_MAX - 100, "0, ");
    hold(&format!("[reactor]\ncores = [{numbers}0]"));
    hold(&format!(
        "data_dir = \"{}\"",
        filled(FILE_BYTES_MAX - 100, "é")
    ));
    hold(&"x".repeat(FILE_BYTES_MAX + 1));
}

#[test]
fn many_of_everything() {
    let namespaces = |count: usize| {
        let mut text = "[[listener]]\naddress = \"127.0.0.1:4420\"\n".to_owned();
        for at in 0..count {
            text.push_str(&format!(
                "[[disk]]\nname = \"disk-{at}\"\nnull = {{ size = \"1TiB\" }}\n"
            ));
            text.push_str(&format!(
                "[[subsystem]]\nnqn = \"nqn.2024-01.com.example:{at}\"\n"
            ));
            text.push_str("allow_any_host = true\n[[subsystem.namespace]]\n");
            text.push_str(&format!("disk = \"disk-{at}\"\n"));
        }
        text
    };
    let (appliance, warnings) = parse(&namespaces(1024), "x", &FakeMachine::new()).unwrap();
    assert_eq!(appliance.subsystems().len(), 1024);
    assert!(warnings.is_empty());
    hold(&namespaces(1025));
    // Every name unknown, and much like all others: the search for what was meant is bounded.
    hold(&namespaces(1024).replace("disk = \"disk-", "disk = \"dsik-"));
}
