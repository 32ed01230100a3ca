//! What members say of themselves: examined, damaged, newer, stale.

use std::{
    fs,
    path::{Path, PathBuf},
};

use corebay_raid::superblock::SUPERBLOCK_BYTES;
use serde_json::{Value, json};

use crate::{FOUR, Rig, array, array_status, serving::text};

#[test]
fn stale_members_count_only_where_that_is_said_by_name() {
    let rig = Rig::new(&FOUR);
    let serving = rig.start(&[]);
    rig.array(&["create", "r", "--level", "raid5", "a", "b", "c"]);
    rig.good();
    let said = rig.refused(&["remove", "r", "d"]);
    assert!(said.contains("\"d\" is no member"), "{said}");
    (0..2).for_each(|_| drop(rig.array(&["remove", "r", "c"])));
    let said = rig.refused(&["remove", "r", "b"]);
    assert!(said.contains("blocks would be lost"), "{said}");
    rig.array(&["stop", "r"]);
    let said = rig.refused(&["assemble", "r", "a", "c"]);
    assert!(
        said.contains("too few members") && said.contains("\"c\": it is of state"),
        "{said}"
    );
    let said = rig.refused(&["assemble", "r", "a", "c", "--lose", "c"]);
    assert!(said.contains("not \"c\""), "{said}");
    rig.array(&["assemble", "r", "a", "c", "--lose", "r"]);
    assert_eq!(array_status(&rig.socket())["state"], "degraded");
    serving.end();
}

/// Disks say what they are members of, whether an appliance runs or not.
#[test]
fn disks_are_examined_without_an_appliance() {
    let rig = Rig::new(&FOUR);
    let examine = |names: &[&str]| {
        let paths: Vec<PathBuf> = names.iter().map(|name| rig.disk(name)).collect();
        let mut arguments = vec!["examine"];
        arguments.extend(paths.iter().map(|path| text(path)));
        array(&rig.socket(), &arguments)
    };
    let serving = rig.start(&[]);
    rig.array(&["create", "r", "--level", "raid5", "a", "b", "c"]);
    rig.good();
    rig.array(&["fail", "r", "b"]);
    let members = array_status(&rig.socket())["members"].clone();
    assert_eq!(
        (&members[1]["overdue"], &members[1]["slow"]),
        (&json!(0), &json!(false))
    );
    for serving in [Some(serving), None] {
        let (ok, said) = examine(&["c", "b"]);
        assert!(ok, "{said}");
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(
            (&said[0]["name"], &said[0]["role"], &said[0]["state"]),
            (&json!("r"), &json!(2), &json!("active"))
        );
        assert_eq!(
            (&said[1]["array"], &said[1]["role"], &said[1]["state"]),
            (&said[0]["array"], &json!(1), &json!("failed"))
        );
        assert!(said[1]["generation"].as_u64() < said[1]["newest_generation"].as_u64());
        assert_eq!(said[0]["states"], json!(["active", "failed", "active"]));
        if let Some(serving) = serving {
            serving.end();
        }
    }
    damage(&rig.disk("a"), &[65536]);
    let (ok, said) = examine(&["a"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert!(ok && said[0]["copies"][0]["bad"].is_null());
    let bad = said[0]["copies"][1]["bad"].as_str().unwrap();
    assert!(bad.contains("checksum"), "{bad}");
    let (ok, said) = examine(&["d"]);
    assert!(!ok && said.contains("d.img is no member"), "{said}");
    // What is not there keeps nothing back that others say.
    let (ok, said) = examine(&["nowhere", "a", "neither"]);
    assert!(
        !ok && said.contains("nowhere.img") && said.contains("neither.img"),
        "{said}"
    );
    assert!(said.contains("\"generation\""), "{said}");
}

/// Overwrites copies of a member's superblock.
fn damage(path: &Path, copies: &[u64]) {
    let mut bytes = fs::read(path).unwrap();
    for at in copies {
        bytes[*at as usize + 100] ^= 1;
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn damaged_and_newer_superblocks_are_told_apart() {
    let rig = Rig::new(&FOUR);
    let serving = rig.start(&[]);
    rig.array(&["create", "r", "--level", "raid5", "a", "b", "c"]);
    rig.good();
    serving.end();
    // One copy: the other one is used, and the first is made anew.
    damage(&rig.disk("a"), &[0]);
    let serving = rig.start(&[]);
    rig.good();
    serving.end();
    let bytes = fs::read(rig.disk("a")).unwrap();
    assert_eq!(
        bytes[..SUPERBLOCK_BYTES],
        bytes[65536..65536 + SUPERBLOCK_BYTES]
    );
    // Both: the member is refused, and the array goes on without it until it is given anew.
    damage(&rig.disk("a"), &[0, 65536]);
    let serving = rig.start(&[]);
    let status = array_status(&rig.socket());
    assert_eq!(status["state"], "degraded");
    assert_eq!(
        status["refused"][0]["why"],
        "its superblock's checksum is wrong"
    );
    let said = rig.refused(&["replace", "r", "0", "a"]);
    assert!(
        said.contains("damaged superblock") && said.contains("--lose a"),
        "{said}"
    );
    rig.array(&["replace", "r", "0", "a", "--lose", "a"]);
    rig.good();
    serving.end();
    // A newer format is never touched.
    let mut bytes = fs::read(rig.disk("b")).unwrap();
    for at in [0, 65536] {
        bytes[at + 8] = 9;
        bytes[at + 12..at + 16].fill(0);
        let crc = crc32c(&bytes[at..at + SUPERBLOCK_BYTES]);
        bytes[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(rig.disk("b"), &bytes).unwrap();
    let serving = rig.start(&[]);
    let status = array_status(&rig.socket());
    let why = status["refused"][0]["why"].as_str().unwrap();
    assert!(why.contains("version 9"), "{status}");
    serving.end();
    assert_eq!(
        fs::read(rig.disk("b")).unwrap()[..SUPERBLOCK_BYTES],
        bytes[..SUPERBLOCK_BYTES]
    );
    // With too few left the reasons are told, and nothing else is kept away.
    damage(&rig.disk("a"), &[0, 65536]);
    let serving = rig.start(&["d"]);
    let list = rig.array(&["list"]);
    assert_eq!(list[0]["state"], "absent");
    assert_eq!(rig.array(&["status", "r"]), list[0]);
    let trouble = list[0]["trouble"].as_str().unwrap();
    assert!(
        trouble.contains("checksum") && trouble.contains("version 9"),
        "{list}"
    );
    serving.end();
    let serving = rig.start(&["d", "r"]);
    assert_eq!(serving.namespaces(), [1]);
    let status = array_status(&rig.socket());
    let trouble = status["trouble"].as_str().unwrap();
    assert!(trouble.contains("too few members"), "{status}");
    assert!(trouble.contains("--lose NAME"), "{status}");
    serving.end();
}

/// CRC32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))
        })
    };
    !bytes.iter().fold(!0, step)
}

/// Of an array that is away the name stays: what other disks hold does not become it.
#[test]
fn the_name_of_an_array_that_is_away_is_not_given_to_another_one() {
    let rig = Rig::new(&FOUR);
    let serving = rig.start(&[]);
    rig.array(&["create", "s", "--level", "raid1", "c", "d"]);
    rig.array(&["stop", "s"]);
    rig.array(&["create", "r", "--level", "raid1", "a", "b"]);
    rig.good();
    serving.end();
    for member in ["a", "b"] {
        damage(&rig.disk(member), &[0, 65536]);
    }
    let serving = rig.start(&[]);
    assert_eq!(array_status(&rig.socket())["state"], "absent");
    let said = rig.refused(&["assemble", "r", "c", "d"]);
    assert!(said.contains("array \"r\""), "{said}");
    assert_eq!(array_status(&rig.socket())["state"], "absent");
    rig.array(&["assemble", "s", "c", "d"]);
    assert_eq!(array_status(&rig.socket())["state"], "absent");
    serving.end();
}
