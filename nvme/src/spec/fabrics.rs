//! Fabrics commands and their data (Base, section 6): Connect, the properties, Disconnect.

use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

use super::{
    command::{FABRICS, FLAGS_PSDT_SGL, SubmissionEntry, join, split},
    sgl::SglDescriptor,
};

/// Fabrics command types, FCTYPE (Base, section 6).
pub mod fctype {
    /// Property Set.
    pub const PROPERTY_SET: u8 = 0x00;
    /// Connect.
    pub const CONNECT: u8 = 0x01;
    /// Property Get.
    pub const PROPERTY_GET: u8 = 0x04;
    /// Authentication Send.
    pub const AUTHENTICATION_SEND: u8 = 0x05;
    /// Authentication Receive.
    pub const AUTHENTICATION_RECEIVE: u8 = 0x06;
    /// Disconnect.
    pub const DISCONNECT: u8 = 0x08;
}

/// CNTLID in Connect data: the host takes any controller (dynamic controller model).
pub const CNTLID_DYNAMIC: u16 = 0xFFFF;
/// CNTLID in Connect data: the host takes any controller of the static controller model.
pub const CNTLID_STATIC: u16 = 0xFFFE;
/// The highest controller identifier that a controller can have (Base, section 3.1.2).
pub const CNTLID_MAX: u16 = 0xFFEF;
/// The lowest SQSIZE of an admin queue: 32 entries, 0's based (Base, section 6.3).
pub const ADMIN_SQSIZE_MIN: u16 = 31;

/// The bits of CATTR with the queue's priority class (Base, section 6.3).
pub const CATTR_PRIORITY_MASK: u8 = 0x03;
/// The bit of CATTR that asks for no SQ flow control (Base, section 6.3).
pub const CATTR_DISABLE_SQ_FLOW_CONTROL: u8 = 0x04;
/// The bit of CATTR that says the host may delete single I/O queues (Base, section 6.3).
pub const CATTR_INDIVIDUAL_QUEUE_DELETION: u8 = 0x08;

/// The bit of a Connect response's dword 0: in-band authentication is required (AUTHREQ, ATR).
pub const AUTHREQ_ATR: u32 = 1 << 17;
/// The bit of a Connect response's dword 0: authentication with a secure channel is required
/// (AUTHREQ, ASCR).
pub const AUTHREQ_ASCR: u32 = 1 << 18;

/// Connect (Base, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// Record Format, 0.
    pub recfmt: u16,
    /// Queue ID: 0 for the admin queue.
    pub qid: u16,
    /// Submission Queue Size, 0's based: the entries less one.
    pub sqsize: u16,
    /// Connect Attributes: the `CATTR_` bits.
    pub cattr: u8,
    /// Keep Alive Timeout in milliseconds; 0 for none. Reserved on I/O queues.
    pub kato: u32,
}

impl From<&SubmissionEntry> for Connect {
    fn from(entry: &SubmissionEntry) -> Self {
        let (cdw10, cdw11) = (entry.cdw10.get(), entry.cdw11.get());
        Self {
            recfmt: cdw10 as u16,
            qid: (cdw10 >> 16) as u16,
            sqsize: cdw11 as u16,
            cattr: (cdw11 >> 16) as u8,
            kato: entry.cdw12.get(),
        }
    }
}

impl Connect {
    /// How many entries the queue has.
    #[must_use]
    pub const fn entries(&self) -> u32 {
        self.sqsize as u32 + 1
    }

    /// Whether the host asks for no SQ flow control.
    #[must_use]
    pub const fn disables_sq_flow_control(&self) -> bool {
        self.cattr & CATTR_DISABLE_SQ_FLOW_CONTROL != 0
    }

    /// The command that has these fields, with its data, [`ConnectData`], in the capsule.
    #[must_use]
    pub fn to_entry(self) -> SubmissionEntry {
        let mut entry = command(fctype::CONNECT);
        entry.cdw10 = U32::new(u32::from(self.recfmt) | u32::from(self.qid) << 16);
        entry.cdw11 = U32::new(u32::from(self.sqsize) | u32::from(self.cattr) << 16);
        entry.cdw12 = U32::new(self.kato);
        entry.with_sgl(SglDescriptor::offset_block(
            0,
            size_of::<ConnectData>() as u32,
        ))
    }
}

fn command(fctype: u8) -> SubmissionEntry {
    let mut entry = SubmissionEntry::new(FABRICS, u32::from(fctype));
    entry.flags = FLAGS_PSDT_SGL;
    entry
}

/// A Connect command with its data in the capsule; `sqsize` is 0's based, `kato` in milliseconds.
#[must_use]
pub fn connect(qid: u16, sqsize: u16, cattr: u8, kato: u32) -> SubmissionEntry {
    Connect {
        recfmt: 0,
        qid,
        sqsize,
        cattr,
        kato,
    }
    .to_entry()
}

/// The data of a Connect command (Base, section 6.3).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ConnectData {
    /// Host Identifier, bytes 15:0.
    pub hostid: [u8; 16],
    /// Controller ID, bytes 17:16: of an existing controller for an I/O queue; for an admin queue
    /// [`CNTLID_DYNAMIC`], [`CNTLID_STATIC`] or a certain one.
    pub cntlid: U16,
    /// Reserved, bytes 255:18.
    pub reserved1: [u8; 238],
    /// NVM Subsystem NVMe Qualified Name, bytes 511:256, ended by NUL.
    pub subnqn: [u8; 256],
    /// Host NVMe Qualified Name, bytes 767:512, ended by NUL.
    pub hostnqn: [u8; 256],
    /// Reserved, bytes 1023:768.
    pub reserved2: [u8; 256],
}

const _: () = {
    assert!(size_of::<ConnectData>() == 1024);
    assert!(std::mem::offset_of!(ConnectData, cntlid) == 16);
    assert!(std::mem::offset_of!(ConnectData, subnqn) == 256);
    assert!(std::mem::offset_of!(ConnectData, hostnqn) == 512);
};

impl ConnectData {
    /// The data of a host that asks for a controller of a subsystem.
    #[must_use]
    pub fn new(
        hostid: [u8; 16],
        cntlid: u16,
        subnqn: &super::nqn::Nqn,
        hostnqn: &super::nqn::Nqn,
    ) -> Self {
        let mut data = Self::new_zeroed();
        data.hostid = hostid;
        data.cntlid = U16::new(cntlid);
        subnqn.write_field(&mut data.subnqn);
        hostnqn.write_field(&mut data.hostnqn);
        data
    }
}

/// Dword 0 of a successful Connect's completion (Base, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectSuccess {
    /// The controller that the queue now belongs to.
    pub cntlid: u16,
    /// In-band authentication is required.
    pub atr: bool,
    /// Authentication with a secure channel is required.
    pub ascr: bool,
}

impl ConnectSuccess {
    /// The connection to a controller that asks for no authentication.
    #[must_use]
    pub const fn new(cntlid: u16) -> Self {
        Self {
            cntlid,
            atr: false,
            ascr: false,
        }
    }

    /// What a completion's dword 0 says.
    #[must_use]
    pub const fn from_dw0(dw0: u32) -> Self {
        Self {
            cntlid: dw0 as u16,
            atr: dw0 & AUTHREQ_ATR != 0,
            ascr: dw0 & AUTHREQ_ASCR != 0,
        }
    }

    /// The completion's dword 0.
    #[must_use]
    pub const fn to_dw0(self) -> u32 {
        let atr = if self.atr { AUTHREQ_ATR } else { 0 };
        let ascr = if self.ascr { AUTHREQ_ASCR } else { 0 };
        self.cntlid as u32 | atr | ascr
    }
}

/// Dword 0 of a Connect's completion with Connect Invalid Parameters (Base, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectInvalid {
    /// Invalid Parameter Offset: of the wrong field's first byte.
    pub ipo: u16,
    /// Invalid Attributes: 0 where the offset is into the command, 1 where it is into the data.
    pub iattr: u8,
}

impl ConnectInvalid {
    /// A wrong field of the command at this byte.
    #[must_use]
    pub const fn in_command(ipo: u16) -> Self {
        Self { ipo, iattr: 0 }
    }

    /// A wrong field of the data at this byte.
    #[must_use]
    pub const fn in_data(ipo: u16) -> Self {
        Self { ipo, iattr: 1 }
    }

    /// What a completion's dword 0 says.
    #[must_use]
    pub const fn from_dw0(dw0: u32) -> Self {
        Self {
            ipo: dw0 as u16,
            iattr: (dw0 >> 16) as u8,
        }
    }

    /// The completion's dword 0.
    #[must_use]
    pub const fn to_dw0(self) -> u32 {
        self.ipo as u32 | (self.iattr as u32) << 16
    }
}

/// The width of a property (Base, section 6.5, ATTRIB).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PropertySize {
    /// 4 bytes.
    Four,
    /// 8 bytes.
    Eight,
    /// A reserved width, by its number.
    Reserved(u8),
}

impl PropertySize {
    const fn from_attrib(attrib: u8) -> Self {
        match attrib & 7 {
            0 => Self::Four,
            1 => Self::Eight,
            other => Self::Reserved(other),
        }
    }

    const fn attrib(self) -> u8 {
        match self {
            Self::Four => 0,
            Self::Eight => 1,
            Self::Reserved(value) => value & 7,
        }
    }
}

/// Property Get (Base, section 6.5). The value comes in the completion's dwords 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertyGet {
    /// The property's width.
    pub size: PropertySize,
    /// Offset: which property.
    pub ofst: u32,
}

impl From<&SubmissionEntry> for PropertyGet {
    fn from(entry: &SubmissionEntry) -> Self {
        Self {
            size: PropertySize::from_attrib(entry.cdw10.get() as u8),
            ofst: entry.cdw11.get(),
        }
    }
}

/// Property Set (Base, section 6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertySet {
    /// The property's width.
    pub size: PropertySize,
    /// Offset: which property.
    pub ofst: u32,
    /// The value; of a property of 4 bytes, the lower half counts.
    pub value: u64,
}

impl From<&SubmissionEntry> for PropertySet {
    fn from(entry: &SubmissionEntry) -> Self {
        Self {
            size: PropertySize::from_attrib(entry.cdw10.get() as u8),
            ofst: entry.cdw11.get(),
            value: join(entry.cdw12, entry.cdw13),
        }
    }
}

/// A Property Get command.
#[must_use]
pub fn property_get(ofst: u32, size: PropertySize) -> SubmissionEntry {
    let mut entry = command(fctype::PROPERTY_GET);
    entry.cdw10 = U32::new(u32::from(size.attrib()));
    entry.cdw11 = U32::new(ofst);
    entry
}

/// A Property Set command.
#[must_use]
pub fn property_set(ofst: u32, size: PropertySize, value: u64) -> SubmissionEntry {
    let mut entry = command(fctype::PROPERTY_SET);
    entry.cdw10 = U32::new(u32::from(size.attrib()));
    entry.cdw11 = U32::new(ofst);
    (entry.cdw12, entry.cdw13) = split(value);
    entry
}

/// A Disconnect command, which ends an I/O queue (Base, section 6.4).
#[must_use]
pub fn disconnect() -> SubmissionEntry {
    command(fctype::DISCONNECT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{nqn::Nqn, property, sgl::Sgl};

    #[test]
    fn connect_as_it_lies_on_the_wire() {
        let entry = connect(3, 127, CATTR_DISABLE_SQ_FLOW_CONTROL, 120_000);
        let bytes = entry.as_bytes();
        assert_eq!(bytes[..8], [0x7F, 0x40, 0, 0, 0x01, 0, 0, 0]);
        assert_eq!(bytes[40..52], [0, 0, 3, 0, 127, 0, 4, 0, 0xC0, 0xD4, 1, 0]);
        let view = Connect::from(&entry);
        assert_eq!((view.qid, view.entries(), view.kato), (3, 128, 120_000));
        assert!(view.disables_sq_flow_control());
        assert_eq!(
            entry.sgl_parsed(),
            Sgl::OffsetBlock {
                offset: 0,
                len: 1024
            }
        );
        let nqn = Nqn::discovery();
        let data = ConnectData::new([7; 16], CNTLID_DYNAMIC, &nqn, &nqn);
        let bytes = data.as_bytes();
        assert_eq!(bytes[16..18], [0xFF, 0xFF]);
        assert_eq!(Nqn::from_field(&bytes[512..768]), Ok(nqn));
    }

    #[test]
    fn properties() {
        let entry = property_set(property::CC, PropertySize::Four, 0x46_0001);
        assert_eq!(
            entry.as_bytes()[40..56],
            [0, 0, 0, 0, 0x14, 0, 0, 0, 1, 0, 0x46, 0, 0, 0, 0, 0]
        );
        let view = PropertySet::from(&entry);
        assert_eq!(
            (view.size, view.ofst, view.value),
            (PropertySize::Four, 0x14, 0x46_0001)
        );
        let view = PropertyGet::from(&property_get(property::CAP, PropertySize::Eight));
        assert_eq!((view.size, view.ofst), (PropertySize::Eight, 0));
        let odd = PropertyGet::from(&property_get(0, PropertySize::Reserved(5)));
        assert_eq!(odd.size, PropertySize::Reserved(5));
    }

    #[test]
    fn connect_results() {
        let success = ConnectSuccess {
            cntlid: 0x0102,
            atr: true,
            ascr: false,
        };
        assert_eq!(success.to_dw0(), 0x0002_0102);
        assert_eq!(ConnectSuccess::from_dw0(0x0002_0102), success);
        assert_eq!(ConnectInvalid::in_data(256).to_dw0(), 0x0001_0100);
        assert_eq!(ConnectInvalid::from_dw0(42), ConnectInvalid::in_command(42));
    }
}
