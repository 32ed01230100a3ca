//! Owns the tests with file systems: make, mount, copy, remount, compare, check, on both formats.

use std::time::Duration;

use anyhow::Result;

use crate::suite::{Case, Lab};

/// The tests of this group.
pub const CASES: &[Case] = &[
    Case::new("ext4_512", |lab| round_trip(lab, 1, EXT4)).peer(),
    Case::new("ext4_4096", |lab| round_trip(lab, 2, EXT4)).peer(),
    Case::new("xfs_512", |lab| round_trip(lab, 1, XFS)).peer(),
    Case::new("xfs_4096", |lab| round_trip(lab, 2, XFS)).peer(),
    Case::new("ext4_survives_restart", ext4_survives_restart),
];

struct FileSystem {
    make: &'static str,
    check: &'static str,
}

const EXT4: FileSystem = FileSystem {
    make: "mkfs.ext4 -q -F",
    check: "fsck.ext4 -f -n",
};
const XFS: FileSystem = FileSystem {
    make: "mkfs.xfs -q -f",
    check: "xfs_repair -n",
};

/// A tree of small and large files, on the device and in memory.
const COPY_TREE: &str = "
    mkdir -p /tmp/tree/small
    head -c 8000000 /dev/urandom > /tmp/tree/large
    cp -a /usr/sbin/nvme /usr/share/fio /tmp/tree/
    for i in $(seq 100); do echo $i > /tmp/tree/small/$i; done
    mount $D /mnt
    cp -a /tmp/tree /mnt/tree
    sync -f /mnt
";

const COMPARE_TREE: &str = "
    mount $D /mnt
    diff -r /tmp/tree /mnt/tree
";

fn round_trip(lab: &mut Lab, nsid: u32, system: FileSystem) -> Result<()> {
    let (_, device) = lab.attach(nsid, "-i 2")?;
    let FileSystem { make, check } = system;
    lab.device_script(
        &device,
        nsid,
        &format!(
            "trap 'rm -rf /tmp/tree' EXIT
             {make} $D
             {COPY_TREE}
             umount /mnt
             echo 3 > /proc/sys/vm/drop_caches
             {COMPARE_TREE}
             rm /mnt/tree/large; sync -f /mnt; fstrim -v /mnt
             rm /tmp/tree/large; diff -r /tmp/tree /mnt/tree
             umount /mnt
             {check} $D"
        ),
    )?;
    Ok(())
}

/// What a host synced is there after the target ended cleanly and started again.
fn ext4_survives_restart(lab: &mut Lab) -> Result<()> {
    let (_, device) = lab.attach(2, "-i 2")?;
    lab.device_script(
        &device,
        2,
        &format!("mkfs.ext4 -q -F $D\n{COPY_TREE}\numount /mnt"),
    )?;
    lab.host().disconnect_all()?;
    lab.corebay()?.stop()?;
    lab.corebay()?.launch()?;
    let (_, device) = lab.attach(2, "-i 2")?;
    let script = format!("fsck.ext4 -f -n $D\n{COMPARE_TREE}\numount /mnt; rm -rf /tmp/tree");
    lab.device_script(&device, 2, &script)?;
    lab.guest
        .until("[ ! -e /tmp/tree ]", Duration::from_secs(5))?;
    Ok(())
}
