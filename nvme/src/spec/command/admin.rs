//! Admin commands: opcodes, and the fields of those that corebay reads or sends.

use zerocopy::little_endian::U32;

use super::{SubmissionEntry, join, split};

/// Delete I/O Submission Queue (Base, section 5.2.4).
pub const DELETE_IO_SUBMISSION_QUEUE: u8 = 0x00;
/// Create I/O Submission Queue.
pub const CREATE_IO_SUBMISSION_QUEUE: u8 = 0x01;
/// Get Log Page.
pub const GET_LOG_PAGE: u8 = 0x02;
/// Delete I/O Completion Queue.
pub const DELETE_IO_COMPLETION_QUEUE: u8 = 0x04;
/// Create I/O Completion Queue.
pub const CREATE_IO_COMPLETION_QUEUE: u8 = 0x05;
/// Identify.
pub const IDENTIFY: u8 = 0x06;
/// Abort.
pub const ABORT: u8 = 0x08;
/// Set Features.
pub const SET_FEATURES: u8 = 0x09;
/// Get Features.
pub const GET_FEATURES: u8 = 0x0A;
/// Asynchronous Event Request.
pub const ASYNC_EVENT_REQUEST: u8 = 0x0C;
/// Namespace Management.
pub const NAMESPACE_MANAGEMENT: u8 = 0x0D;
/// Firmware Commit.
pub const FIRMWARE_COMMIT: u8 = 0x10;
/// Firmware Image Download.
pub const FIRMWARE_IMAGE_DOWNLOAD: u8 = 0x11;
/// Device Self-test.
pub const DEVICE_SELF_TEST: u8 = 0x14;
/// Namespace Attachment.
pub const NAMESPACE_ATTACHMENT: u8 = 0x15;
/// Keep Alive.
pub const KEEP_ALIVE: u8 = 0x18;
/// Directive Send.
pub const DIRECTIVE_SEND: u8 = 0x19;
/// Directive Receive.
pub const DIRECTIVE_RECEIVE: u8 = 0x1A;
/// Virtualization Management.
pub const VIRTUALIZATION_MANAGEMENT: u8 = 0x1C;
/// NVMe-MI Send.
pub const NVME_MI_SEND: u8 = 0x1D;
/// NVMe-MI Receive.
pub const NVME_MI_RECEIVE: u8 = 0x1E;
/// Capacity Management.
pub const CAPACITY_MANAGEMENT: u8 = 0x20;
/// Discovery Information Management.
pub const DISCOVERY_INFORMATION_MANAGEMENT: u8 = 0x21;
/// Fabric Zoning Receive.
pub const FABRIC_ZONING_RECEIVE: u8 = 0x22;
/// Lockdown.
pub const LOCKDOWN: u8 = 0x24;
/// Fabric Zoning Lookup.
pub const FABRIC_ZONING_LOOKUP: u8 = 0x25;
/// Clear Exported NVM Resource Configuration.
pub const CLEAR_EXPORTED_NVM_RESOURCE: u8 = 0x28;
/// Fabric Zoning Send.
pub const FABRIC_ZONING_SEND: u8 = 0x29;
/// Create Exported NVM Subsystem.
pub const CREATE_EXPORTED_NVM_SUBSYSTEM: u8 = 0x2A;
/// Manage Exported NVM Subsystem.
pub const MANAGE_EXPORTED_NVM_SUBSYSTEM: u8 = 0x2D;
/// Manage Exported Namespace.
pub const MANAGE_EXPORTED_NAMESPACE: u8 = 0x31;
/// Manage Exported Port.
pub const MANAGE_EXPORTED_PORT: u8 = 0x35;
/// Send Discovery Log Page.
pub const SEND_DISCOVERY_LOG_PAGE: u8 = 0x39;
/// Track Send.
pub const TRACK_SEND: u8 = 0x3D;
/// Track Receive.
pub const TRACK_RECEIVE: u8 = 0x3E;
/// Migration Send.
pub const MIGRATION_SEND: u8 = 0x41;
/// Migration Receive.
pub const MIGRATION_RECEIVE: u8 = 0x42;
/// Controller Data Queue.
pub const CONTROLLER_DATA_QUEUE: u8 = 0x45;
/// Doorbell Buffer Config.
pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7C;
/// Format NVM.
pub const FORMAT_NVM: u8 = 0x80;
/// Security Send.
pub const SECURITY_SEND: u8 = 0x81;
/// Security Receive.
pub const SECURITY_RECEIVE: u8 = 0x82;
/// Sanitize.
pub const SANITIZE: u8 = 0x84;
/// Get LBA Status (NVM, section 4.2.1).
pub const GET_LBA_STATUS: u8 = 0x86;

/// Identify (Base, section 5.1.13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identify {
    /// Controller or Namespace Structure: which data is asked for.
    pub cns: u8,
    /// Controller Identifier that some CNS values need.
    pub cntid: u16,
    /// CNS Specific Identifier.
    pub cnssid: u16,
    /// Command Set Identifier.
    pub csi: u8,
    /// UUID Index.
    pub uuid_index: u8,
}

impl From<&SubmissionEntry> for Identify {
    fn from(entry: &SubmissionEntry) -> Self {
        let (cdw10, cdw11) = (entry.cdw10.get(), entry.cdw11.get());
        Self {
            cns: cdw10 as u8,
            cntid: (cdw10 >> 16) as u16,
            cnssid: cdw11 as u16,
            csi: (cdw11 >> 24) as u8,
            uuid_index: entry.cdw14.get() as u8 & 0x7F,
        }
    }
}

impl Identify {
    /// The command that has these fields.
    #[must_use]
    pub fn to_entry(self, nsid: u32) -> SubmissionEntry {
        let mut entry = SubmissionEntry::new(IDENTIFY, nsid);
        entry.cdw10 = U32::new(u32::from(self.cns) | u32::from(self.cntid) << 16);
        entry.cdw11 = U32::new(u32::from(self.cnssid) | u32::from(self.csi) << 24);
        entry.cdw14 = U32::new(u32::from(self.uuid_index & 0x7F));
        entry
    }
}

/// An Identify command for the data structure `cns` of a namespace; `nsid` is 0 where it is none's.
#[must_use]
pub fn identify(cns: u8, nsid: u32, csi: u8) -> SubmissionEntry {
    Identify {
        cns,
        csi,
        ..Identify::default()
    }
    .to_entry(nsid)
}

/// Get Log Page (Base, section 5.1.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetLogPage {
    /// Log Page Identifier.
    pub lid: u8,
    /// Log Specific Parameter, 7 bits.
    pub lsp: u8,
    /// Retain Asynchronous Event.
    pub rae: bool,
    /// How many dwords are asked for, at least 1 (NUMD + 1).
    pub dwords: u64,
    /// Log Specific Identifier.
    pub lsi: u16,
    /// Log Page Offset: bytes, or an index where `ot` is set.
    pub offset: u64,
    /// Offset Type: `offset` is an index into a list of structures.
    pub ot: bool,
    /// Command Set Identifier.
    pub csi: u8,
    /// UUID Index.
    pub uuid_index: u8,
}

impl From<&SubmissionEntry> for GetLogPage {
    fn from(entry: &SubmissionEntry) -> Self {
        let (cdw10, cdw11) = (entry.cdw10.get(), entry.cdw11.get());
        let cdw14 = entry.cdw14.get();
        Self {
            lid: cdw10 as u8,
            lsp: (cdw10 >> 8) as u8 & 0x7F,
            rae: cdw10 & 1 << 15 != 0,
            dwords: u64::from(cdw10 >> 16 | (cdw11 & 0xFFFF) << 16) + 1,
            lsi: (cdw11 >> 16) as u16,
            offset: join(entry.cdw12, entry.cdw13),
            ot: cdw14 & 1 << 23 != 0,
            csi: (cdw14 >> 24) as u8,
            uuid_index: cdw14 as u8 & 0x7F,
        }
    }
}

impl GetLogPage {
    /// A request for `dwords` dwords (at least 1) of a log page from the byte `offset`.
    #[must_use]
    pub fn new(lid: u8, offset: u64, dwords: u32) -> Self {
        Self {
            lid,
            lsp: 0,
            rae: false,
            dwords: u64::from(dwords.max(1)),
            lsi: 0,
            offset,
            ot: false,
            csi: 0,
            uuid_index: 0,
        }
    }

    /// How many bytes are asked for.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.dwords * 4
    }

    /// The command that has these fields.
    #[must_use]
    pub fn to_entry(self, nsid: u32) -> SubmissionEntry {
        let numd = u32::try_from(self.dwords.saturating_sub(1)).unwrap_or(u32::MAX);
        let mut entry = SubmissionEntry::new(GET_LOG_PAGE, nsid);
        entry.cdw10 = U32::new(
            u32::from(self.lid)
                | u32::from(self.lsp & 0x7F) << 8
                | u32::from(self.rae) << 15
                | numd << 16,
        );
        entry.cdw11 = U32::new(numd >> 16 | u32::from(self.lsi) << 16);
        (entry.cdw12, entry.cdw13) = split(self.offset);
        entry.cdw14 = U32::new(
            u32::from(self.uuid_index & 0x7F)
                | u32::from(self.ot) << 23
                | u32::from(self.csi) << 24,
        );
        entry
    }
}

/// A Get Log Page command for `dwords` dwords (at least 1) from the byte `offset`; `rae` keeps the
/// event that led to it.
#[must_use]
pub fn get_log_page(lid: u8, nsid: u32, offset: u64, dwords: u32, rae: bool) -> SubmissionEntry {
    let mut page = GetLogPage::new(lid, offset, dwords);
    page.rae = rae;
    page.to_entry(nsid)
}

/// Get Features (Base, section 5.1.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetFeatures {
    /// Feature Identifier.
    pub fid: u8,
    /// Select: 0 current, 1 default, 2 saved, 3 supported capabilities.
    pub sel: u8,
    /// CDW11: feature specific.
    pub cdw11: u32,
    /// UUID Index.
    pub uuid_index: u8,
}

impl From<&SubmissionEntry> for GetFeatures {
    fn from(entry: &SubmissionEntry) -> Self {
        Self {
            fid: entry.cdw10.get() as u8,
            sel: (entry.cdw10.get() >> 8) as u8 & 7,
            cdw11: entry.cdw11.get(),
            uuid_index: entry.cdw14.get() as u8 & 0x7F,
        }
    }
}

/// A Get Features command; `sel` is 0 for the current value.
#[must_use]
pub fn get_features(fid: u8, sel: u8, nsid: u32, cdw11: u32) -> SubmissionEntry {
    let mut entry = SubmissionEntry::new(GET_FEATURES, nsid);
    entry.cdw10 = U32::new(u32::from(fid) | u32::from(sel & 7) << 8);
    entry.cdw11 = U32::new(cdw11);
    entry
}

/// Set Features (Base, section 5.1.25).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetFeatures {
    /// Feature Identifier.
    pub fid: u8,
    /// Save: the value shall outlast resets and power cycles.
    pub save: bool,
    /// CDW11: feature specific.
    pub cdw11: u32,
    /// CDW12: feature specific.
    pub cdw12: u32,
    /// CDW13: feature specific.
    pub cdw13: u32,
    /// UUID Index.
    pub uuid_index: u8,
    /// CDW15: feature specific.
    pub cdw15: u32,
}

impl From<&SubmissionEntry> for SetFeatures {
    fn from(entry: &SubmissionEntry) -> Self {
        Self {
            fid: entry.cdw10.get() as u8,
            save: entry.cdw10.get() >> 31 != 0,
            cdw11: entry.cdw11.get(),
            cdw12: entry.cdw12.get(),
            cdw13: entry.cdw13.get(),
            uuid_index: entry.cdw14.get() as u8 & 0x7F,
            cdw15: entry.cdw15.get(),
        }
    }
}

/// A Set Features command for a value that isn't saved.
#[must_use]
pub fn set_features(fid: u8, nsid: u32, cdw11: u32) -> SubmissionEntry {
    let mut entry = SubmissionEntry::new(SET_FEATURES, nsid);
    entry.cdw10 = U32::new(u32::from(fid));
    entry.cdw11 = U32::new(cdw11);
    entry
}

/// Abort (Base, section 5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// The submission queue of the command to abort.
    pub sqid: u16,
    /// The identifier of the command to abort.
    pub cid: u16,
}

impl From<&SubmissionEntry> for Abort {
    fn from(entry: &SubmissionEntry) -> Self {
        Self {
            sqid: entry.cdw10.get() as u16,
            cid: (entry.cdw10.get() >> 16) as u16,
        }
    }
}

/// The bit of an Abort completion's dword 0 that says the command was *not* aborted.
pub const ABORT_NOT_ABORTED: u32 = 1;

/// An Abort command.
#[must_use]
pub fn abort(sqid: u16, cid: u16) -> SubmissionEntry {
    let mut entry = SubmissionEntry::new(ABORT, 0);
    entry.cdw10 = U32::new(u32::from(sqid) | u32::from(cid) << 16);
    entry
}

/// An Asynchronous Event Request command (Base, section 5.1.2).
#[must_use]
pub fn async_event_request() -> SubmissionEntry {
    SubmissionEntry::new(ASYNC_EVENT_REQUEST, 0)
}

/// A Keep Alive command (Base, section 5.1.14).
#[must_use]
pub fn keep_alive() -> SubmissionEntry {
    SubmissionEntry::new(KEEP_ALIVE, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_what_is_read() {
        let fields = Identify {
            cns: 0x1C,
            cntid: 0x1234,
            cnssid: 0x5678,
            csi: 2,
            uuid_index: 5,
        };
        assert_eq!(Identify::from(&fields.to_entry(7)), fields);
        let page = GetLogPage {
            lid: 0x70,
            lsp: 0x55,
            rae: true,
            dwords: 0x0012_3457,
            lsi: 0xABCD,
            offset: 0x1_2345_6780,
            ot: true,
            csi: 2,
            uuid_index: 1,
        };
        assert_eq!(GetLogPage::from(&page.to_entry(0)), page);
        let page = GetLogPage::from(&get_log_page(2, 0xFFFF_FFFF, 0, 128, false));
        assert_eq!((page.lid, page.bytes(), page.rae), (2, 512, false));
        let entry = abort(3, 0x0405);
        assert_eq!(
            Abort::from(&entry),
            Abort {
                sqid: 3,
                cid: 0x0405
            }
        );
        let get = GetFeatures::from(&get_features(0x0B, 3, 0, 9));
        assert_eq!((get.fid, get.sel, get.cdw11), (0x0B, 3, 9));
        let set = SetFeatures::from(&set_features(0x07, 0, 0x0003_0003));
        assert_eq!((set.fid, set.save, set.cdw11), (7, false, 0x0003_0003));
    }
}
