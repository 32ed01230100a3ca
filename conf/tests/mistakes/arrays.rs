//! Mistakes in `[[array]]`, and in what namespaces and the machine have for it.

use std::net::IpAddr;
use std::path::Path;

use corebay_conf::appliance::{Consistency, Level, Patience};
use corebay_conf::machine::{AddressState, CoreState, KeptArray, PathState};
use corebay_conf::{Machine, Size};
use uuid::Uuid;

use super::support::FakeMachine;
use super::{expect, shown};

/// A right configuration of an array, whose lines the cases replace.
const ARRAY: &str = r#"data_dir = "/data"
[[listener]]
address = "127.0.0.1:4420"
[[disk]]
name = "a"
ram = { size = "64MiB" }
[[disk]]
name = "b"
ram = { size = "64MiB" }
[[disk]]
name = "c"
ram = { size = "64MiB" }
[[disk]]
name = "d"
ram = { size = "64MiB" }
[[array]]
name = "r"
level = "raid5"
members = ["a", "b", "c"]
[[subsystem]]
nqn = "nqn.2024-01.com.example:one"
allow_any_host = true
[[subsystem.namespace]]
disk = "r"
[[subsystem.namespace]]
disk = "d"
"#;

#[track_caller]
fn instead(line: &str, other: &str, fragments: &[&str]) {
    assert!(ARRAY.contains(line), "{line}");
    // Disks that no array has any more are warned of besides.
    let (shown, errors, _) = shown(&ARRAY.replacen(line, other, 1));
    for fragment in fragments {
        assert!(shown.contains(fragment), "`{fragment}` is not in:\n{shown}");
    }
    assert_eq!(errors, 1, "{shown}");
}

#[test]
fn a_right_one() {
    expect(ARRAY, 0, 0, &[]);
    for (level, members) in [
        ("raid0", "\"a\""),
        ("raid1", "\"a\", \"b\""),
        (
            "ec\"\ndata = 2\nparity = 1\nconsistency = \"resync",
            "\"a\", \"b\", \"c\"",
        ),
    ] {
        let text = ARRAY.replace("raid5", level);
        let text = text.replace(
            "members = [\"a\", \"b\", \"c\"]",
            &format!("members = [{members}]"),
        );
        // One warning for all that are left over.
        let unused = members.matches(',').count() + 1 < 3;
        expect(&text, 0, usize::from(unused), &[]);
    }
}

#[test]
fn levels() {
    let level = |text: &str, fragments: &[&str]| instead("level = \"raid5\"", text, fragments);
    level("", &["[[array]] has no `level`", "add `level = \"raid6\"`"]);
    level(
        "level = \"raid50\"",
        &["`level` cannot be `raid50`", "did you mean"],
    );
    level("level = \"raid6\"", &["RAID 6 takes", "not 3", ":19:11"]);
    level("level = \"raid10\"", &["an even number", "not 3", ":19:11"]);
    level(
        "level = \"ec\"\ndata = 3\nparity = 2",
        &["members", "not 3", "expected 5"],
    );
    level(
        "level = \"ec\"\ndata = 2",
        &["the level \"ec\" needs `parity`", ":18:9"],
    );
    level(
        "level = \"ec\"\ndata = 30\nparity = 2",
        &["ec 30+2", ":19:8"],
    );
    level(
        "level = \"raid5\"\nparity = 1",
        &["`parity` is for the level \"ec\" only", ":19:10"],
    );
}

#[test]
fn members() {
    let members = |text: &str, fragments: &[&str]| {
        instead(
            "members = [\"a\", \"b\", \"c\"]",
            &format!("members = {text}"),
            fragments,
        );
    };
    members("[\"a\", \"b\"]", &["RAID 5 takes 3 to", "not 2", ":19:11"]);
    members(
        "\"a\"",
        &["`members` cannot be a text", "a list of names of disks"],
    );
    members("[\"a\", \"b\", 3]", &["`members` cannot be a number"]);
    members(
        "[\"a\", \"b\", \"e\"]",
        &["there is no disk named `e`", ":19:22"],
    );
    members(
        "[\"a\", \"b\", \"b\"]",
        &["the disk `b` is used twice", ":19:22", "first here"],
    );
    members(
        "[\"a\", \"b\", \"c\"]\nspares = [\"a\"]",
        &[
            "the disk `a` is used twice: as a member of the array `r` and as a spare of the array `r`",
        ],
    );
    members(
        "[\"a\", \"b\", \"d\"]",
        &["the disk `d` is a member of the array `r`, and cannot be namespace 2"],
    );
    members(
        "[\"a\", \"b\", \"c\"]\n[[array]]\nname = \"s\"\nlevel = \"raid0\"\nmembers = [\"c\"]",
        &["the disk `c` is used twice", ":23:12"],
    );
    expect(
        &ARRAY.replacen("name = \"r\"", "name = \"a\"", 1),
        2,
        0,
        &[
            "a disk is named `a` too",
            ":17:8",
            "there is no disk named `r`",
        ],
    );
    instead("name = \"r\"", "", &["[[array]] has no `name`"]);
}

#[test]
fn zones() {
    let with = |line: &str, fragments: &[&str]| {
        let text = format!("level = \"raid5\"\n{line}");
        instead("level = \"raid5\"", &text, fragments);
    };
    let sizes = "expected \"none\" or a size from 512KiB to 1GiB";
    with(
        "zone = \"256KiB\"",
        &["a zone of `256KiB` cannot be", sizes],
    );
    with("zone = \"2GiB\"", &["a zone of `2GiB` cannot be", sizes]);
    with("zone = \"1000001\"", &["it is a multiple of 4KiB"]);
    with("zone = \"some\"", &["`some`", sizes]);
    with("zone = \"60MiB\"", &["is too small for the array"]);
    instead(
        "level = \"raid5\"",
        "level = \"raid1\"\nzone = \"1MiB\"",
        &[
            "a mirrored zone is for levels with parity",
            "RAID 1 has no parity",
        ],
    );
}

#[test]
fn geometry() {
    let with = |line: &str, fragments: &[&str]| {
        instead(
            "level = \"raid5\"",
            &format!("level = \"raid5\"\n{line}"),
            fragments,
        );
    };
    with(
        "strip = \"96KiB\"",
        &[
            "a strip of 98304 bytes is no power of two",
            "\"64KiB\" and \"128KiB\"",
            ":19:9",
        ],
    );
    with(
        "strip = \"8KiB\"",
        &["`strip` is out of range", "16KiB to 1MiB"],
    );
    with(
        "consistency = \"none\"",
        &["`consistency` cannot be", "\"journal\" or \"resync\""],
    );
    with(
        "rebuild_floor = \"50MiB\"\nrebuild_ceiling = \"10MiB\"",
        &[
            "the ceiling of a rebuild is below its floor",
            ":20:19",
            "the floor",
        ],
    );
    with(
        "stripe = \"64KiB\"",
        &["unknown key `stripe` in [[array]]", "did you mean `strip`?"],
    );
    instead(
        "name = \"b\"\nram = { size = \"64MiB\" }",
        "name = \"b\"\nram = { size = \"2MiB\" }",
        &[
            "the disk `b` is too small for the array: it has 2097152 bytes",
            ":19:17",
        ],
    );
    instead(
        "name = \"c\"\nram = { size = \"64MiB\" }",
        "name = \"c\"\nram = { size = \"64MiB\" }\nblock_size = 512",
        &[
            "the disk `c` has blocks of 512 bytes",
            "expected blocks of 4096 bytes",
            ":20:22",
        ],
    );
    instead(
        "name = \"c\"\nram = { size = \"64MiB\" }",
        "name = \"c\"\nnull = { size = \"64MiB\" }",
        &["the disk `c` keeps nothing"],
    );
}

#[test]
fn care() {
    let with = |line: &str, fragments: &[&str]| {
        let with = format!("level = \"raid5\"\n{line}");
        instead("level = \"raid5\"", &with, fragments);
    };
    with(
        "scrub = \"often\"",
        &["`often`", "expected \"never\", \"daily\", \"weekly\""],
    );
    with("scrub = \"10ms\"", &["`10ms` is too short or too long"]);
    with(
        "member_timeout = \"1ms\"",
        &[
            "`1ms` is too short or too long",
            "expected a time from 500ms",
        ],
    );
    with("slow_members = \"stop\"", &["`stop`", "\"warn\""]);
}

#[test]
fn what_is_exported() {
    let twice = "disk = \"r\"\n[[subsystem.namespace]]\ndisk = \"r\"";
    instead("disk = \"r\"", twice, &["the array `r` is exported twice"]);
    instead(
        "disk = \"r\"",
        "disk = \"a\"",
        &["the disk `a` is a member of the array `r`"],
    );
    let text = ARRAY.replace("[[subsystem.namespace]]\ndisk = \"r\"\n", "");
    expect(
        &text,
        0,
        1,
        &["warning: the array `r` is not exported", ":17:8"],
    );
}

#[test]
fn a_member_may_be_missing() {
    let file = "file = { path = \"/data/gone.img\" }";
    let text = ARRAY.replacen("ram = { size = \"64MiB\" }", file, 1);
    expect(
        &text,
        0,
        1,
        &["warning: `/data/gone.img` does not exist", "without it"],
    );
    let device = "device = { path = \"/dev/gone\" }";
    let text = ARRAY.replacen("ram = { size = \"64MiB\" }", device, 1);
    expect(&text, 0, 1, &["warning: `/dev/gone` does not exist"]);
}

/// A machine whose appliance has made arrays while it ran.
struct Kept(Vec<KeptArray>);

impl Machine for Kept {
    fn core(&self, core: u32) -> CoreState {
        FakeMachine::new().core(core)
    }

    fn first_core(&self) -> Option<u32> {
        FakeMachine::new().first_core()
    }

    fn usable_cores(&self) -> String {
        FakeMachine::new().usable_cores()
    }

    fn path(&self, path: &Path) -> PathState {
        FakeMachine::new().path(path)
    }

    fn address(&self, address: IpAddr) -> AddressState {
        FakeMachine::new().address(address)
    }

    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    fn kept_arrays(&self, data_dir: &Path) -> Vec<KeptArray> {
        assert_eq!(data_dir, Path::new("/var/lib/corebay"));
        self.0.clone()
    }
}

#[test]
fn arrays_that_were_made_while_it_ran() {
    let kept = KeptArray {
        name: "made".into(),
        uuid: Uuid::from_u128(7),
        level: Level::Raid6,
        roles: 5,
        members: ["a", "b", "gone", "c"].map(str::to_owned).to_vec(),
        spares: Vec::new(),
        strip: Size::KIB.times(64),
        consistency: Consistency::Journal,
        rebuild_floor: Size::MIB.times(20),
        rebuild_ceiling: None,
        scrub: None,
        patience: Patience::default(),
    };
    let text = |array: &str, exported: &str| {
        let disk =
            |name: &str| format!("[[disk]]\nname = \"{name}\"\nram = {{ size = \"64MiB\" }}\n");
        let disks: String = ["a", "b", "c"].map(disk).concat();
        format!(
            "[[listener]]\naddress = \"127.0.0.1:4420\"\n{disks}{array}[[subsystem]]\n\
             nqn = \"nqn.2024-01.com.example:a\"\nallow_any_host = true\n\
             [[subsystem.namespace]]\ndisk = \"{exported}\"\n"
        )
    };
    let machine = Kept(vec![kept]);
    let parse = |text: &str| corebay_conf::parse(text, "a.toml", &machine);
    // It is there by its name, with the disks that are left.
    let (appliance, warnings) = parse(&text("", "made")).unwrap();
    let array = &appliance.arrays()[0];
    assert_eq!(
        (array.kept, array.roles, array.members.len()),
        (Some(Uuid::from_u128(7)), 5, 3)
    );
    let said: String = warnings.iter().map(ToString::to_string).collect();
    assert!(
        said.contains("the disk `gone` of the array `made`"),
        "{said}"
    );
    // Its disks are not given away twice.
    let mistakes = parse(&text("", "a")).unwrap_err();
    let said: String = mistakes.iter().map(ToString::to_string).collect();
    assert!(
        said.contains("the disk `a` is a member of the array `made`"),
        "{said}"
    );
    // What the file says of this name counts instead.
    let own = "[[array]]\nname = \"made\"\nlevel = \"raid1\"\nmembers = [\"a\", \"b\"]\n";
    let (appliance, _) = parse(&text(own, "made")).unwrap();
    assert_eq!(appliance.arrays().len(), 1);
    assert_eq!(appliance.arrays()[0].kept, None);
}

#[test]
fn a_name_that_members_cannot_carry() {
    let line = "name = \"r\"\nlevel";
    let long = "r".repeat(33);
    let named = |create: bool| format!("name = \"{long}\"\ncreate = {create}\nlevel");
    let exported = ARRAY.replace("disk = \"r\"", &format!("disk = \"{long}\""));
    let fragments = ["at most 32 bytes", "33 bytes"];
    let text = exported.replacen(line, &named(true), 1);
    expect(&text, 1, 0, &fragments);
    // One that is found may be called anything here.
    let text = exported.replacen(line, &named(false), 1);
    expect(&text, 0, 0, &[]);
}
