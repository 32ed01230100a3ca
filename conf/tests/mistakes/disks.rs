//! Mistakes in `[[disk]]`, and in what the machine has for it.

use super::{BASE, SECOND, and, expect, instead};

#[test]
fn kinds() {
    let disk =
        |line: &str, fragments: &[&str]| instead("ram = { size = \"1GiB\" }", line, fragments);
    instead(
        "name = \"disk-1\"\nram",
        "ram",
        &["[[disk]] has no `name`", "add `name = \"disk-1\"`"],
    );
    disk(
        "",
        &[
            "[[disk]] does not say what it is made of",
            "`file`, `ram`, `null`, `device` and `nvme`",
        ],
    );
    disk(
        "ram = { size = \"1GiB\" }\nnull = { size = \"1GiB\" }",
        &[
            "a disk cannot be both `ram` and `null`",
            ":10:1",
            "the first kind",
        ],
    );
    disk(
        "rom = { size = \"1GiB\" }\nram = { size = \"1GiB\" }",
        &["unknown key `rom` in [[disk]]", "did you mean `ram`?"],
    );
}

#[test]
fn sizes() {
    let disk =
        |line: &str, fragments: &[&str]| instead("ram = { size = \"1GiB\" }", line, fragments);
    disk(
        "ram = { size = \"5000\" }",
        &[
            "5000 bytes are no whole number of blocks of 4096 bytes",
            "the nearest are \"4KiB\" and \"8KiB\"",
        ],
    );
    disk(
        "ram = { size = \"1000\" }\nblock_size = 512",
        &["expected a multiple of 512 bytes"],
    );
    disk("ram = { size = \"0\" }", &["`size` is out of range"]);
    disk("ram = { size = \"7.9GiB\" }", &["no whole number of bytes"]);
    disk(
        "ram = { size = \"7.875GiB\" }",
        &[
            "the memory disks do not fit",
            "8.1GiB in all",
            "the machine has 8.0GiB",
        ],
    );
    disk(
        "null = { size = \"1TiB\" }\nblock_size = 1024",
        &["a block cannot be 1024 bytes long", "expected 512 or 4096"],
    );
    disk(
        "null = { size = \"1TiB\" }\nblock_size = true",
        &["`block_size` cannot be `true` or `false`"],
    );
    disk(
        "ram = { size = \"1GiB\" }\nuuid = \"1234\"",
        &["`1234` is not a UUID"],
    );
    disk(
        "ram = { size = \"1GiB\" }\nuuid = \"00000000-0000-0000-0000-000000000000\"",
        &["a UUID of zeros"],
    );
    let twice = "[[disk]]\nname = \"disk-1\"\nnull = { size = \"1GiB\" }\n";
    and(
        twice,
        &["there are two disks named `disk-1`", ":16:8", "first here"],
    );
}

#[test]
fn paths() {
    let file = |inner: &str, fragments: &[&str]| {
        instead(
            "ram = { size = \"1GiB\" }",
            &format!("file = {{ {inner} }}"),
            fragments,
        )
    };
    file("size = \"1GiB\"", &["`file` has no `path`"]);
    file("path = \"\"", &["a path cannot be empty"]);
    file("path = \"~/disk.img\"", &["`~` is not expanded"]);
    file("path = \"a\\u0000b\"", &["this is not a path"]);
    file(
        "path = \"new.img\"",
        &[
            "the file `/data/new.img` does not exist",
            "say `create = true` and a size",
        ],
    );
    file(
        "path = \"new.img\", create = true",
        &[
            "a file that is created needs a size",
            "add `size = \"8GiB\"`",
        ],
    );
    file(
        "path = \"new.img\", create = true, size = 1",
        &["`size` is out of range"],
    );
    file(
        "path = \"sub/new.img\", create = true, size = \"1GiB\"",
        &[
            "the folder `/data/sub` does not exist",
            "`mkdir -p /data/sub`",
        ],
    );
}

#[test]
fn files() {
    let file = |inner: &str, fragments: &[&str]| {
        instead(
            "ram = { size = \"1GiB\" }",
            &format!("file = {{ {inner} }}"),
            fragments,
        )
    };
    file(
        "path = \"8GiB.img\", size = \"9GiB\"",
        &["the file is too small: it has 8GiB of 9GiB", "truncate"],
    );
    file("path = \"empty.img\"", &["the file is empty"]);
    file(
        "path = \"odd.img\"",
        &["the file has 1000 bytes: no whole number of blocks of 4096 bytes"],
    );
    file(
        "path = \"ragged.img\", size = \"4KiB\"",
        &[
            "the file has 5000 bytes: no whole number of blocks of 4096 bytes",
            "--size 8192",
        ],
    );
    file(
        "path = \"secret.img\"",
        &["`/data/secret.img` cannot be used: permission denied"],
    );
    file(
        "path = \"/dev/nvme1n1\"",
        &[
            "`/dev/nvme1n1` is a block device",
            "write `device = { path = \"/dev/nvme1n1\" }`",
        ],
    );
    file(
        "path = \"/dev/nvme1\"",
        &["`/dev/nvme1` is a character device"],
    );
    file("path = \"/data\"", &["`/data` is a folder"]);
    let smaller = BASE.replace(
        "ram = { size = \"1GiB\" }",
        "file = { path = \"8GiB.img\", size = \"1GiB\" }",
    );
    expect(
        &smaller,
        0,
        1,
        &[
            "the file is larger than its `size`: it has 8GiB",
            "served whole",
        ],
    );
    let file_disk = "file = { path = \"8GiB.img\" }";
    let twice = format!("{BASE}{SECOND}").replace("ram = { size = \"1GiB\" }", file_disk);
    expect(
        &twice,
        1,
        0,
        &["two disks are made of `/data/8GiB.img`", "first here"],
    );
    let text = BASE.replace("data_dir = \"/data\"", "data_dir = \"/data/8GiB.img\"");
    expect(&text, 1, 0, &["`/data/8GiB.img` is not a folder"]);
}

#[test]
fn devices() {
    let device = |path: &str, more: &str, fragments: &[&str]| {
        instead(
            "ram = { size = \"1GiB\" }",
            &format!("device = {{ path = \"{path}\" }}\n{more}"),
            fragments,
        );
    };
    device(
        "nvme1n1",
        "",
        &[
            "the path of a device begins with `/`",
            "write \"/dev/nvme1n1\"",
        ],
    );
    device(
        "/dev/nvme9n1",
        "",
        &["`/dev/nvme9n1` does not exist", "lsblk"],
    );
    device(
        "/dev/nvme1",
        "",
        &[
            "`/dev/nvme1` is the controller, not the drive",
            "did you mean \"/dev/nvme1n1\"?",
        ],
    );
    device(
        "/dev/sda",
        "",
        &["`/dev/sda` is in use: it is mounted on /"],
    );
    device(
        "/data/8GiB.img",
        "",
        &[
            "`/data/8GiB.img` is a file",
            "write `file = { path = \"/data/8GiB.img\" }`",
        ],
    );
    device("/data", "", &["`/data` is a folder"]);
    device(
        "/dev/nvme2n1",
        "block_size = 512",
        &[
            "the device cannot write blocks of 512 bytes",
            "expected 4096: the device's own block",
        ],
    );
    device(
        "/dev/odd",
        "block_size = 4096",
        &[
            "no whole number of blocks of 4096 bytes",
            "say block_size = 512",
        ],
    );
    let devices = format!("{BASE}{SECOND}").replace(
        "ram = { size = \"1GiB\" }",
        "device = { path = \"/dev/nvme1n1\" }",
    );
    expect(&devices, 1, 0, &["two disks are made of `/dev/nvme1n1`"]);
}

#[test]
fn nvme_drives() {
    let disk =
        |line: &str, fragments: &[&str]| instead("ram = { size = \"1GiB\" }", line, fragments);
    disk(
        "nvme = { }",
        &["has no `address`", "address = \"0000:01:00.0\""],
    );
    disk(
        "nvme = { address = \"0000:01:00\" }",
        &[
            "`0000:01:00` is not a PCI address",
            "as `corebay drives` shows it",
        ],
    );
    disk(
        "nvme = { serial = \"S1\", address = \"01:00.0\" }",
        &[
            "a drive is named once, not by `address` and `serial`",
            "the first name",
        ],
    );
    disk(
        "nvme = { address = \"01:00.0\", nsid = 0 }",
        &["`nsid` is out of range"],
    );
    disk(
        "nvme = { eui64 = \"xyz\" }",
        &["is not an EUI-64", "16 hexadecimal digits"],
    );
    let ram = "ram = { size = \"1GiB\" }";
    let twice = format!("{BASE}{SECOND}").replace(ram, "nvme = { address = \"01:00.0\" }");
    let fragments = [
        "two disks are the same namespace of 0000:01:00.0",
        "first here",
    ];
    expect(&twice, 1, 0, &fragments);
}
