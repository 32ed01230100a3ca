//! From a TOML document to [`RawAppliance`]: each value by itself is read, checked and in its type.
//!
//! What needs two values, or the machine, to be judged is the business of [`crate::check`]. The
//! options of the command line come to a [`RawAppliance`] too, so that both are checked alike.

pub(crate) mod array;
mod disk;
mod listener;
mod pool;
mod reactor;
pub(crate) mod scalars;
mod subsystem;
mod transport;

use std::path::PathBuf;

use toml::de::DeTable;

pub(crate) use array::{RawArray, RawLevel};
pub(crate) use disk::{RawDisk, RawKind};
pub(crate) use listener::{RawListener, RawReferral};
pub(crate) use pool::RawPool;
pub(crate) use reactor::RawReactor;
pub(crate) use reactor::default_log;
pub(crate) use subsystem::default_model;
pub(crate) use subsystem::{RawAccess, RawNamespace, RawSubsystem};
pub(crate) use transport::default as default_tcp;

use crate::appliance::{Log, Tcp};
use crate::diagnostic::{Sink, Span};
use crate::limits;
use crate::machine::Machine;
use crate::reader::{At, Section};

/// The folder for an appliance that says no other.
const DATA_DIR: &str = "/var/lib/corebay";

/// Everything a configuration says, each part by itself.
pub(crate) struct RawAppliance {
    pub(crate) data_dir: At<PathBuf>,
    /// The folder that relative disk files lie in.
    pub(crate) disk_dir: PathBuf,
    pub(crate) reactor: RawReactor,
    pub(crate) tcp: Tcp,
    pub(crate) listeners: Vec<RawListener>,
    pub(crate) disks: Vec<RawDisk>,
    pub(crate) arrays: Vec<RawArray>,
    pub(crate) pools: Vec<RawPool>,
    pub(crate) subsystems: Vec<RawSubsystem>,
    pub(crate) referrals: Vec<RawReferral>,
    pub(crate) log: Log,
    /// Addresses may have port 0: only on the command line.
    pub(crate) any_port: bool,
}

impl RawAppliance {
    /// Adds the arrays that were made while the appliance ran. What the file says of the same name
    /// counts instead.
    pub(crate) fn add_kept(&mut self, machine: &dyn Machine) {
        for kept in machine.kept_arrays(&self.data_dir.value) {
            let is_it = |raw: &RawArray| raw.name.value() == Some(&kept.name);
            if !self.arrays.iter().any(is_it) && self.arrays.len() < limits::ARRAYS_MAX {
                self.arrays.push(RawArray::of_kept(kept));
            }
        }
    }
}

/// Reads a whole document; what is wrong is pushed, and a default stands in for it.
pub(crate) fn read(document: &DeTable<'_>, sink: &mut Sink) -> RawAppliance {
    let whole = Span { start: 0, end: 0 };
    let mut root = Section::new(document, whole, "", sink);
    let data_dir = root.parsed("data_dir", "the path of a folder", scalars::path);
    let data_dir = data_dir.or_at(PathBuf::from(DATA_DIR));
    let raw = RawAppliance {
        disk_dir: data_dir.value.clone(),
        data_dir,
        reactor: reactor::read(root.table("reactor", "[reactor]", "`[reactor]`")),
        log: reactor::read_log(root.table("log", "[log]", "`[log]`")),
        tcp: transport::read(root.table("transport", "[transport]", "`[transport.tcp]`")),
        listeners: root.tables(
            "listener",
            "[[listener]]",
            limits::LISTENERS_MAX,
            listener::read,
        ),
        disks: root.tables("disk", "[[disk]]", limits::DISKS_MAX, disk::read),
        arrays: root.tables("array", "[[array]]", limits::ARRAYS_MAX, array::read),
        pools: root.tables("pool", "[[pool]]", limits::POOLS_MAX, pool::read),
        subsystems: root.tables(
            "subsystem",
            "[[subsystem]]",
            limits::SUBSYSTEMS_MAX,
            subsystem::read,
        ),
        referrals: root.tables(
            "referral",
            "[[referral]]",
            limits::REFERRALS_MAX,
            listener::read_referral,
        ),
        any_port: false,
    };
    root.finish_with(table_of);
    raw
}

/// The table that a key belongs to, where it stands by itself at the head of the file.
fn table_of(key: &str) -> Option<&'static str> {
    const TABLES: [(&str, &[&str]); 6] = [
        ("[reactor]", &["cores", "memory", "hugepages", "idle_sleep"]),
        ("[log]", &["level", "format"]),
        (
            "[transport.tcp]",
            &[
                "header_digest",
                "data_digest",
                "stall_timeout",
                "max_transfer",
                "in_capsule",
                "max_h2c_data",
                "queue_depth",
                "io_queues",
                "max_connections",
            ],
        ),
        ("[[listener]]", &["address", "subsystems"]),
        (
            "[[disk]]",
            &["file", "device", "ram", "null", "nvme", "block_size"],
        ),
        (
            "[[subsystem]]",
            &["nqn", "allow_any_host", "hosts", "serial", "listeners"],
        ),
    ];
    let mut tables = TABLES.into_iter();
    tables
        .find(|(_, keys)| keys.contains(&key))
        .map(|(table, _)| table)
}
