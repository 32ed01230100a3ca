//! Owns the list of the guest tests and the targets that their groups run against.

use crate::endpoint::{Medium, Namespace};
use crate::guest::MEMORY_MIB;
use crate::hardware::Hardware;
use crate::suite::Group;

mod arrays;
mod association;
mod commands;
mod discovery;
mod drives;
mod drives_above;
mod failures;
mod features;
mod filesystems;
mod identity;
mod integrity;
mod logs;
mod multipath;
mod volumes;

/// Memory of 512-byte blocks, memory of 4096-byte blocks.
const BOTH_FORMATS: &[Namespace] = &[
    Namespace {
        nsid: 1,
        medium: Medium::Memory,
        mib: 256,
        block: 512,
    },
    Namespace {
        nsid: 2,
        medium: Medium::Memory,
        mib: 128,
        block: 4096,
    },
];

/// Files, which stay over a restart, in both formats; large enough for XFS.
const FILES: &[Namespace] = &[
    Namespace {
        nsid: 1,
        medium: Medium::File,
        mib: 512,
        block: 512,
    },
    Namespace {
        nsid: 2,
        medium: Medium::File,
        mib: 512,
        block: 4096,
    },
];

/// A RAID 5, and two disks more.
const ARRAY: &[Namespace] = &[Namespace {
    nsid: 1,
    medium: Medium::Array,
    mib: 128,
    block: 4096,
}];

/// All groups, in the order in which they run.
pub fn groups() -> Vec<Group> {
    let group = |name, cores, namespaces, cases| Group {
        name,
        cores,
        namespaces,
        hardware: Hardware::Host(MEMORY_MIB),
        cases,
    };
    vec![
        group("discovery", "0", BOTH_FORMATS, discovery::CASES),
        group("identity", "0", BOTH_FORMATS, identity::CASES),
        group("commands", "0", BOTH_FORMATS, commands::CASES),
        group("features", "0", BOTH_FORMATS, features::CASES),
        group("logs", "0", BOTH_FORMATS, logs::CASES),
        group("association", "0", BOTH_FORMATS, association::CASES),
        group("integrity", "0,1", BOTH_FORMATS, integrity::CASES),
        group("multipath", "0,1", FILES, multipath::CASES),
        group("filesystems", "0", FILES, filesystems::CASES),
        group("failures", "0", FILES, failures::CASES),
        group("arrays", "0,1", ARRAY, arrays::CASES),
        // The appliance makes what it exports by itself.
        group("volumes", "0,1", &[], volumes::CASES),
        Group {
            hardware: Hardware::Drives,
            ..group("drives", "0", &[], drives::CASES)
        },
        Group {
            hardware: Hardware::Drives,
            ..group("drives_above", "0", &[], drives_above::CASES)
        },
    ]
}
