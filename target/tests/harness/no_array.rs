//! What no array can be made of.

/// Of what, after `create NAME --level`, and what is said of it.
pub const REFUSED: [(&[&str], &str); 17] = [
    (&["raid5", "a", "b"], "RAID 5 takes 3 to 25 members, not 2"),
    (
        &["raid10", "a", "b", "c", "fs", "tiny"],
        "an even number, not 5",
    ),
    (&["raid7", "a"], "there is no level \"raid7\""),
    (&["ec", "a", "b", "c"], "needs `data` and `parity`"),
    (
        &["raid1", "a", "tiny"],
        "\"tiny\" is too small: it has 1048576 bytes",
    ),
    (
        &["raid1", "a", "fs"],
        "\"fs\" is not free: it holds an ext2, ext3 or ext4 filesystem",
    ),
    (&["raid1", "a", "x"], "\"x\" is exported"),
    (&["raid1", "a", "a"], "\"a\" is named twice"),
    (&["raid1", "a", "nowhere"], "no disk named \"nowhere\""),
    (&["raid1", "a", "nothing"], "\"nothing\" keeps nothing"),
    (
        &["raid1", "a", "small-blocks"],
        "\"small-blocks\" has blocks of 512 bytes",
    ),
    (
        &["raid1", "a", "--lose", "b"],
        "\"b\" is to be lost, and is no disk",
    ),
    (&["raid1", "a", "--strip", "3KiB"], "a strip of 3072 bytes"),
    (&["raid1", "a", "--strip", "x"], "`strip`"),
    (
        &["raid1", "a", "--scrub", "often"],
        "expected never, daily, weekly, monthly",
    ),
    (
        &["raid1", "a", "--rebuild-ceiling", "1MiB"],
        "below its floor",
    ),
    (
        &["raid1", "a", "--consistency", "luck"],
        "journal and resync",
    ),
];
