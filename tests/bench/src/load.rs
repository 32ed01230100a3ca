//! Owns the loads: what the raw host asks for, and how many bytes go which way for it.

use corebay_nvme::spec::tcp::{
    HLEN_C2H_DATA, HLEN_CAPSULE_CMD, HLEN_CAPSULE_RESP, HLEN_H2C_DATA, HLEN_R2T,
};

/// The longest write whose data travel in the capsule, as hosts do it with the target's default.
const IN_CAPSULE_BYTES: usize = 8 << 10;

/// The bytes of a command capsule without data.
pub const CAPSULE_BYTES: usize = HLEN_CAPSULE_CMD as usize;
/// The bytes of a response capsule.
pub const RESPONSE_BYTES: usize = HLEN_CAPSULE_RESP as usize;
/// The bytes of the header of a C2HData PDU.
pub const C2H_BYTES: usize = HLEN_C2H_DATA as usize;
/// The bytes of the header of an H2CData PDU.
pub const H2C_BYTES: usize = HLEN_H2C_DATA as usize;
/// The bytes of an R2T.
pub const R2T_BYTES: usize = HLEN_R2T as usize;

/// One load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Its name in tables and for `--only`.
    pub name: &'static str,
    /// Writes; else reads.
    pub write: bool,
    /// Bytes of one command.
    pub bytes: usize,
    /// Commands outstanding.
    pub depth: usize,
    /// Reads are completed by a response capsule behind their data, as for hosts that want to know
    /// the queue's head; else the data's SUCCESS flag stands for it.
    pub flow_control: bool,
}

/// Every load, in the order of the table.
pub const LOADS: &[Load] = &[
    Load::read("read-4k-qd1", 4 << 10, 1),
    Load::read("read-4k-qd32", 4 << 10, 32),
    Load::read("read-4k-qd128", 4 << 10, 128),
    Load::read("read-128k-qd16", 128 << 10, 16),
    Load::write("write-4k-qd1", 4 << 10, 1),
    Load::write("write-4k-qd32", 4 << 10, 32),
    Load::write("write-4k-qd128", 4 << 10, 128),
    Load::write("write-128k-qd16", 128 << 10, 16),
];

impl Load {
    const fn read(name: &'static str, bytes: usize, depth: usize) -> Self {
        Self {
            name,
            write: false,
            bytes,
            depth,
            flow_control: false,
        }
    }

    const fn write(name: &'static str, bytes: usize, depth: usize) -> Self {
        Self {
            write: true,
            ..Self::read(name, bytes, depth)
        }
    }

    /// The data are fetched by R2T.
    pub const fn is_fetched(&self) -> bool {
        self.write && self.bytes > IN_CAPSULE_BYTES
    }

    /// The bytes of a command capsule.
    pub const fn capsule_bytes(&self) -> usize {
        if self.write && !self.is_fetched() {
            CAPSULE_BYTES + self.bytes
        } else {
            CAPSULE_BYTES
        }
    }

    /// The bytes of a response with its data, if it has any.
    pub const fn reply_bytes(&self) -> usize {
        if self.write {
            RESPONSE_BYTES
        } else if self.flow_control {
            C2H_BYTES + self.bytes + RESPONSE_BYTES
        } else {
            C2H_BYTES + self.bytes
        }
    }
}
