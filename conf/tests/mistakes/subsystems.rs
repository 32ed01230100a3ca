//! Mistakes in `[[subsystem]]` and its namespaces.

use super::{BASE, and, expect, instead};

#[test]
fn nqns() {
    let nqn =
        |text: &str, fragments: &[&str]| instead("nqn.2024-01.com.example:one", text, fragments);
    nqn("iqn.2024-01.com.example:one", &["is not an NQN"]);
    nqn(
        "nqn.2014-08.org.nvmexpress.discovery",
        &["this is the NQN of the discovery service"],
    );
    nqn(
        "nqn.2024-13.com.example:one",
        &[":11:12", "followed by a date, `yyyy-mm.`"],
    );
    nqn(
        "nqn.2024-01.com.example",
        &[":11:31", "followed by `:` and a name"],
    );
    nqn(
        "nqn.2024-01.com.example:o n e",
        &[":11:33", "no spaces or control characters"],
    );
    nqn(
        "nqn.2024-01.com.example:\\u0007",
        &[":11:7", "no spaces or control characters"],
    );
    nqn(
        &format!("nqn.2024-01.com.example:{}", "x".repeat(200)),
        &["at most 223 bytes"],
    );
}

#[test]
fn subsystems() {
    let subsystem = |line: &str, fragments: &[&str]| {
        instead(
            "allow_any_host = true",
            &format!("allow_any_host = true\n{line}"),
            fragments,
        );
    };
    subsystem(
        "serial = \"123456789012345678901\"",
        &["too long for a serial number", "1 to 20 ASCII characters"],
    );
    subsystem("serial = \" 1\"", &["cannot be a serial number"]);
    subsystem("model = \"Größe\"", &["cannot be a model number"]);
    subsystem(
        "hosts = [\"nqn.2024-01.com.example:host\"]",
        &[
            "`allow_any_host` and `hosts` contradict each other",
            "every host",
        ],
    );
    subsystem(
        "hosts = \"nqn.2024-01.com.example:host\"",
        &["`hosts` cannot be a text", "expected a list of host NQNs"],
    );
    subsystem(
        "listeners = []",
        &["a subsystem without a listener cannot be reached"],
    );
    subsystem(
        "listeners = [\"mian\"]",
        &[
            "there is no listener named `mian`",
            "did you mean \"main\"?",
        ],
    );
    subsystem("listeners = [\"backup\"]", &["the listeners are `main`"]);
    subsystem("max_namespaces = 0", &["expected a number from 1 to 1024"]);
    let not_there = BASE.replace(
        "allow_any_host = true",
        "listeners = [\"other\"]\nallow_any_host = true",
    ) + "[[listener]]\nname = \"other\"\naddress = \"127.0.0.1:8009\"\nsubsystems = false\n";
    expect(
        &not_there,
        1,
        0,
        &[
            "the listener `other` serves no subsystems",
            "as it says here",
        ],
    );
    expect(
        &BASE.replace("allow_any_host = true", ""),
        0,
        1,
        &["no host may connect to this subsystem", "nvme show-hostnqn"],
    );
    let twice = "hosts = [\"nqn.2024-01.com.example:h\", \"nqn.2024-01.com.example:h\"]";
    expect(
        &BASE.replace("allow_any_host = true", twice),
        0,
        1,
        &["is listed twice"],
    );
}

#[test]
fn identifiers() {
    let namespace = |line: &str, fragments: &[&str]| and(&format!("{line}\n"), fragments);
    namespace(
        "nsid = 0",
        &["`nsid` is out of range", "expected a number from 1 to 1024"],
    );
    namespace(
        "nguid = \"12\"",
        &["`12` is not an NGUID", "32 hexadecimal digits"],
    );
    namespace(
        "eui64 = \"0000000000000000\"",
        &["is not an EUI-64", "not all zero"],
    );
    namespace(
        "uuid = \"{0b9f5c1e-4d1c-4a83-8a3e-3b1c7f0a6d52}\"",
        &["is not a UUID"],
    );
    let two = |first: &str, second: &str, fragments: &[&str]| {
        let more = "[[subsystem.namespace]]\ndisk = \"disk-2\"\n";
        let disk = "[[disk]]\nname = \"disk-2\"\nram = { size = \"1GiB\" }\n";
        expect(
            &format!("{BASE}{first}\n{more}{second}\n{disk}"),
            1,
            0,
            fragments,
        );
    };
    two(
        "nsid = 7",
        "nsid = 7",
        &["there are two namespaces with NSID 7", "first here"],
    );
    let uuid = "uuid = \"0b9f5c1e-4d1c-4a83-8a3e-3b1c7f0a6d52\"";
    two(uuid, uuid, &["two namespaces have the same UUID"]);
    let nguid = "nguid = \"0b9f5c1e4d1c4a838a3e3b1c7f0a6d52\"";
    two(nguid, nguid, &["two namespaces have the same NGUID"]);
    let eui64 = "eui64 = \"0b9f5c1e4d1c4a83\"";
    two(eui64, eui64, &["two namespaces have the same EUI-64"]);
}

#[test]
fn namespaces() {
    and(
        "[[subsystem.namespace]]\ndisk = \"disk-1\"\n",
        &[
            "the disk `disk-1` is exported twice: by namespace 1 of `nqn.2024-01.com.example:one` and by namespace 2 of",
            "first here",
        ],
    );
    and(
        "[[subsystem.namespace]]\ndisk = \"disk-2\"\n",
        &[
            "there is no disk named `disk-2`",
            "did you mean \"disk-1\"?",
        ],
    );
    let bounded = |max: &str, nsid: &str| {
        BASE.replace(
            "allow_any_host = true",
            &format!("allow_any_host = true\nmax_namespaces = {max}"),
        ) + nsid
    };
    expect(
        &bounded("4", "nsid = 5\n"),
        1,
        0,
        &[
            "NSID 5 is above `max_namespaces`",
            "expected 1 to 4",
            "the bound",
        ],
    );
    let full = bounded("1", "[[subsystem.namespace]]\ndisk = \"disk-2\"\n")
        + "[[disk]]\nname = \"disk-2\"\nram = { size = \"1GiB\" }\n";
    expect(&full, 1, 0, &["no NSID is left for this namespace"]);
}
