//! Owns what a guest is made of: packages, kernel modules, scripts, and the key of all that.

/// The Debian release that the guest runs: its kernel has ublk, in-band authentication and TLS.
pub const SUITE: &str = "trixie";

/// The packages of the guest root; their dependencies follow.
pub const PACKAGES: &[&str] = &[
    "base-files",
    "bash",
    "busybox-static",
    "coreutils",
    "dash",
    "diffutils",
    "e2fsprogs",
    "findutils",
    "fio",
    "grep",
    "gzip",
    "hostname",
    "ibverbs-providers",
    "ibverbs-utils",
    "iproute2",
    "jq",
    "kmod",
    "ktls-utils",
    "linux-image-amd64",
    "mawk",
    "mount",
    "nvme-cli",
    "perftest",
    "procps",
    "rdma-core",
    "rdmacm-utils",
    "sed",
    "util-linux",
    "xfsprogs",
];

/// The parts of the kernel's module tree that the guest root keeps.
pub const MODULES: &[&str] = &[
    "arch",
    "crypto",
    "drivers/block",
    "drivers/char",
    "drivers/infiniband/core",
    "drivers/infiniband/sw",
    "drivers/iommu",
    "drivers/md",
    "drivers/net/dummy.ko.xz",
    "drivers/net/net_failover.ko.xz",
    "drivers/net/veth.ko.xz",
    "drivers/net/virtio_net.ko.xz",
    "drivers/nvme",
    "drivers/vfio",
    "drivers/virtio",
    "fs/9p",
    "fs/configfs",
    "fs/ext4",
    "fs/jbd2",
    "fs/mbcache.ko.xz",
    "fs/netfs",
    "fs/overlayfs",
    "fs/xfs",
    "lib",
    "net/9p",
    "net/core",
    "net/ipv4",
    "net/ipv6",
    "net/sched",
    "net/tls",
    "virt",
];

/// The modules that the initramfs loads, with all that they depend on.
pub const BOOT_MODULES: &[&str] = &["9pnet_virtio", "9p", "overlay"];

/// The first process of the guest, in the initramfs.
pub const STAGE1: &str = include_str!("../scripts/stage1.sh");

/// The first process of the guest's root: network, modules, agent.
pub const INIT: &str = include_str!("../scripts/init.sh");

/// Names an image made from exactly this recipe: FNV-1a over all its parts.
pub fn key() -> String {
    // Raised by hand when the code that follows the recipe makes something else of it.
    let version = "1";
    let lists = [PACKAGES, MODULES, BOOT_MODULES].concat();
    let parts = [version, SUITE, STAGE1, INIT].into_iter().chain(lists);
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}
