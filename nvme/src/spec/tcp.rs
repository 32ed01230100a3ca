//! The PDUs of NVMe/TCP: headers as they lie in the stream (TCP, section 3.6).
//!
//! Invariants:
//! - Every constructor fills in the type, HLEN, PDO and PLEN of a PDU without digests. A sender that
//!   uses digests calls [`CommonHeader::with_digests`] on what it made.
//! - Nothing here checks a header: that is the connection's business, which knows what was
//!   negotiated.

use std::fmt;

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes, Unaligned,
    little_endian::{U16, U32},
};

use super::{command::SubmissionEntry, completion::CompletionEntry};

/// The TCP port of I/O controllers (TCP, section 3.1.1).
pub const PORT_IO: u16 = 4420;
/// The TCP port of discovery controllers (TCP, section 3.1.1).
pub const PORT_DISCOVERY: u16 = 8009;

/// The PDU format version that this code speaks (TCP, section 3.6.2, PFV).
pub const PFV: u16 = 0;
/// The bytes of a header or data digest, a CRC32C (TCP, section 3.3.1.1).
pub const DIGEST_BYTES: usize = 4;
/// The least that a controller may put into MAXH2CDATA (TCP, section 3.6.2).
pub const MAXH2CDATA_MIN: u32 = 4096;
/// The highest CPDA or HPDA: data aligned to 128 bytes (TCP, section 3.6.2; 0's based dwords).
pub const PDA_MAX: u8 = 31;
/// The most bytes of the offending PDU's header that follow a terminate request's own header (TCP,
/// figures 28 and 30).
pub const TERM_DATA_BYTES_MAX: usize = 128;

/// A PDU has a header digest after its header (all PDUs but the first four; TCP, section 3.6.2).
pub const FLAG_HDGST: u8 = 0x01;
/// A PDU has a data digest after its data (TCP, section 3.6.2).
pub const FLAG_DDGST: u8 = 0x02;
/// An H2CData PDU is the last of its R2T's data (TCP, section 3.6.2).
pub const FLAG_H2C_LAST_PDU: u8 = 0x04;
/// A C2HData PDU is the last of its command's data (TCP, section 3.6.2).
pub const FLAG_C2H_LAST_PDU: u8 = 0x04;
/// A C2HData PDU stands for its command's successful completion: no response capsule follows (TCP,
/// figure 35).
pub const FLAG_C2H_SUCCESS: u8 = 0x08;

/// The bit of DGST that asks for, or grants, header digests (TCP, section 3.6.2).
pub const DGST_HEADER: u8 = 0x01;
/// The bit of DGST that asks for, or grants, data digests (TCP, section 3.6.2).
pub const DGST_DATA: u8 = 0x02;

/// The bytes of the header that all PDUs begin with.
pub const HLEN_COMMON: u8 = 8;
/// HLEN, and PLEN, of an ICReq.
pub const HLEN_IC_REQ: u8 = 128;
/// HLEN, and PLEN, of an ICResp.
pub const HLEN_IC_RESP: u8 = 128;
/// HLEN of an H2CTermReq and of a C2HTermReq.
pub const HLEN_TERM_REQ: u8 = 24;
/// HLEN of a CapsuleCmd.
pub const HLEN_CAPSULE_CMD: u8 = 72;
/// HLEN of a CapsuleResp.
pub const HLEN_CAPSULE_RESP: u8 = 24;
/// HLEN of an H2CData.
pub const HLEN_H2C_DATA: u8 = 24;
/// HLEN of a C2HData.
pub const HLEN_C2H_DATA: u8 = 24;
/// HLEN of an R2T.
pub const HLEN_R2T: u8 = 24;
/// The longest header of any PDU.
pub const HLEN_MAX: usize = 128;

/// What a PDU is (TCP, section 3.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, TryFromBytes)]
#[repr(u8)]
pub enum PduType {
    /// Initialize Connection Request, host to controller.
    IcReq = 0x00,
    /// Initialize Connection Response, controller to host.
    IcResp = 0x01,
    /// Host to Controller Terminate Connection Request.
    H2cTermReq = 0x02,
    /// Controller to Host Terminate Connection Request.
    C2hTermReq = 0x03,
    /// Command Capsule, host to controller.
    CapsuleCmd = 0x04,
    /// Response Capsule, controller to host.
    CapsuleResp = 0x05,
    /// Host to Controller Data Transfer.
    H2cData = 0x06,
    /// Controller to Host Data Transfer.
    C2hData = 0x07,
    /// Ready to Transfer, controller to host.
    R2t = 0x09,
}

impl PduType {
    /// The type of this number, where the specification defines one. Types that were withdrawn
    /// (08h) or given to later versions are none.
    #[must_use]
    pub fn from_wire(value: u8) -> Option<Self> {
        zerocopy::try_transmute!(value).ok()
    }

    /// HLEN of this type: the bytes of its header, without the digest.
    #[must_use]
    pub const fn hlen(self) -> u8 {
        match self {
            Self::IcReq => HLEN_IC_REQ,
            Self::IcResp => HLEN_IC_RESP,
            Self::H2cTermReq | Self::C2hTermReq => HLEN_TERM_REQ,
            Self::CapsuleCmd => HLEN_CAPSULE_CMD,
            Self::CapsuleResp => HLEN_CAPSULE_RESP,
            Self::H2cData => HLEN_H2C_DATA,
            Self::C2hData => HLEN_C2H_DATA,
            Self::R2t => HLEN_R2T,
        }
    }

    /// Whether it is the host that sends this type.
    #[must_use]
    pub const fn is_from_host(self) -> bool {
        self as u8 & 1 == 0
    }

    /// Whether this type has a header digest where header digests were negotiated: all have but
    /// those that set up and tear down a connection.
    #[must_use]
    pub const fn may_have_header_digest(self) -> bool {
        self as u8 > Self::C2hTermReq as u8
    }

    /// Whether data may follow this type's header.
    #[must_use]
    pub const fn may_have_data(self) -> bool {
        !matches!(
            self,
            Self::IcReq | Self::IcResp | Self::CapsuleResp | Self::R2t
        )
    }
}

/// The header that all PDUs begin with (TCP, section 3.6.2).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct CommonHeader {
    /// PDU-Type, byte 0: see [`PduType`].
    pub pdu_type: u8,
    /// FLAGS, byte 1: the `FLAG_` constants.
    pub flags: u8,
    /// Header Length, byte 2: bytes of the header, this one included, without the digest.
    pub hlen: u8,
    /// PDU Data Offset, byte 3: bytes from the PDU's start to its data; 0 where it has none.
    pub pdo: u8,
    /// PDU Length, bytes 7:4: everything, digests and padding included.
    pub plen: U32,
}

const _: () = assert!(size_of::<CommonHeader>() == HLEN_COMMON as usize);

impl CommonHeader {
    /// The header of a PDU without digests or padding whose data has `data_bytes` bytes.
    #[must_use]
    pub const fn new(pdu_type: PduType, flags: u8, data_bytes: u32) -> Self {
        let hlen = pdu_type.hlen();
        Self {
            pdu_type: pdu_type as u8,
            flags,
            hlen,
            pdo: if data_bytes == 0 { 0 } else { hlen },
            plen: U32::new((hlen as u32).saturating_add(data_bytes)),
        }
    }

    /// What the PDU is, where its type is known.
    #[must_use]
    pub fn kind(&self) -> Option<PduType> {
        PduType::from_wire(self.pdu_type)
    }

    /// Whether a header digest follows the header.
    #[must_use]
    pub const fn has_header_digest(&self) -> bool {
        self.flags & FLAG_HDGST != 0
    }

    /// Whether a data digest follows the data.
    #[must_use]
    pub const fn has_data_digest(&self) -> bool {
        self.flags & FLAG_DDGST != 0
    }

    /// This header, as [`new`](Self::new) made it, of a PDU with digests, its data aligned to
    /// `alignment` bytes (`(CPDA or HPDA + 1) * 4`; where it is 0, the data follows at once): sets
    /// flags, PDO and PLEN. A data digest is set only where there is data.
    #[must_use]
    pub fn with_digests(mut self, header: bool, data: bool, alignment: u32) -> Self {
        let data_bytes = self.plen.get().saturating_sub(u32::from(self.hlen));
        let mut head = u32::from(self.hlen);
        if header {
            self.flags |= FLAG_HDGST;
            head += DIGEST_BYTES as u32;
        }
        if data_bytes == 0 {
            self.plen = U32::new(head);
            return self;
        }
        let start = head.next_multiple_of(alignment.max(1));
        self.pdo = u8::try_from(start).unwrap_or(u8::MAX);
        let mut plen = start.saturating_add(data_bytes);
        if data {
            self.flags |= FLAG_DDGST;
            plen = plen.saturating_add(DIGEST_BYTES as u32);
        }
        self.plen = U32::new(plen);
        self
    }
}

/// Initialize Connection Request (TCP, section 3.6.2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IcReq {
    /// The common header, bytes 7:0.
    pub common: CommonHeader,
    /// PDU Format Version, bytes 9:8.
    pub pfv: U16,
    /// Host PDU Data Alignment, byte 10: of data that the controller sends; dwords, 0's based.
    pub hpda: u8,
    /// Digests that the host asks for, byte 11: [`DGST_HEADER`], [`DGST_DATA`].
    pub dgst: u8,
    /// Maximum Number of Outstanding R2T per command, bytes 15:12; 0's based.
    pub maxr2t: U32,
    /// Reserved, bytes 127:16.
    pub reserved: [u8; 112],
}

const _: () = assert!(size_of::<IcReq>() == HLEN_IC_REQ as usize);

impl IcReq {
    /// A request of the current format version; `maxr2t` is 0's based.
    #[must_use]
    pub fn new(hpda: u8, dgst: u8, maxr2t: u32) -> Self {
        Self {
            common: CommonHeader::new(PduType::IcReq, 0, 0),
            pfv: U16::new(PFV),
            hpda,
            dgst,
            maxr2t: U32::new(maxr2t),
            reserved: [0; 112],
        }
    }
}

/// Initialize Connection Response (TCP, section 3.6.2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IcResp {
    /// The common header, bytes 7:0.
    pub common: CommonHeader,
    /// PDU Format Version, bytes 9:8.
    pub pfv: U16,
    /// Controller PDU Data Alignment, byte 10: of data that the host sends; dwords, 0's based.
    pub cpda: u8,
    /// Digests in use from now on, byte 11: [`DGST_HEADER`], [`DGST_DATA`].
    pub dgst: u8,
    /// Maximum Host to Controller Data length, bytes 15:12: the most data bytes of one H2CData.
    pub maxh2cdata: U32,
    /// Reserved, bytes 127:16.
    pub reserved: [u8; 112],
}

const _: () = assert!(size_of::<IcResp>() == HLEN_IC_RESP as usize);

impl IcResp {
    /// A response of the current format version.
    #[must_use]
    pub fn new(cpda: u8, dgst: u8, maxh2cdata: u32) -> Self {
        Self {
            common: CommonHeader::new(PduType::IcResp, 0, 0),
            pfv: U16::new(PFV),
            cpda,
            dgst,
            maxh2cdata: U32::new(maxh2cdata),
            reserved: [0; 112],
        }
    }
}

/// Why a connection is terminated (TCP, section 3.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum FatalErrorStatus {
    /// A field of the header is wrong; FEI is its byte offset.
    InvalidPduHeaderField = 0x01,
    /// A PDU came that has no place at this point.
    PduSequenceError = 0x02,
    /// The header digest doesn't match; FEI is the digest that was received.
    HeaderDigestError = 0x03,
    /// Data lies outside of what was asked for.
    DataTransferOutOfRange = 0x04,
    /// As the controller's: an H2CData is longer than MAXH2CDATA. As the host's: more R2T than
    /// MAXR2T allows.
    LimitExceeded = 0x05,
    /// A parameter is not supported; FEI is its byte offset.
    UnsupportedParameter = 0x06,
}

impl FatalErrorStatus {
    const TABLE: [(Self, &str); 6] = [
        (Self::InvalidPduHeaderField, "Invalid PDU Header Field"),
        (Self::PduSequenceError, "PDU Sequence Error"),
        (Self::HeaderDigestError, "Header Digest Error"),
        (Self::DataTransferOutOfRange, "Data Transfer Out of Range"),
        (Self::LimitExceeded, "Data Transfer or R2T Limit Exceeded"),
        (Self::UnsupportedParameter, "Unsupported Parameter"),
    ];

    /// The status of this number, where the specification defines one.
    #[must_use]
    pub fn from_wire(value: u16) -> Option<Self> {
        let index = usize::from(value).checked_sub(1)?;
        Self::TABLE.get(index).map(|(status, _)| *status)
    }
}

impl fmt::Display for FatalErrorStatus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, words) = Self::TABLE[*self as usize - 1];
        write!(out, "{words} (fes {:02X}h)", *self as u16)
    }
}

/// Terminate Connection Request of either side (TCP, section 3.6.2). The header of the PDU that
/// was wrong follows it, at most [`TERM_DATA_BYTES_MAX`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TermReq {
    /// The common header, bytes 7:0.
    pub common: CommonHeader,
    /// Fatal Error Status, bytes 9:8: see [`FatalErrorStatus`].
    pub fes: U16,
    /// Fatal Error Information, bytes 13:10: what it says depends on the status.
    pub fei: U32,
    /// Reserved, bytes 23:14.
    pub reserved: [u8; 10],
}

const _: () = assert!(size_of::<TermReq>() == HLEN_TERM_REQ as usize);

impl TermReq {
    fn new(pdu_type: PduType, fes: FatalErrorStatus, fei: u32, data_bytes: usize) -> Self {
        let data_bytes = data_bytes.min(TERM_DATA_BYTES_MAX) as u32;
        let mut common = CommonHeader::new(pdu_type, 0, data_bytes);
        common.pdo = 0; // Reserved in terminate requests: the data always follows at byte 24.
        Self {
            common,
            fes: U16::new(fes as u16),
            fei: U32::new(fei),
            reserved: [0; 10],
        }
    }

    /// The controller's request, followed by `data_bytes` of the offending header.
    #[must_use]
    pub fn from_controller(fes: FatalErrorStatus, fei: u32, data_bytes: usize) -> Self {
        Self::new(PduType::C2hTermReq, fes, fei, data_bytes)
    }

    /// The host's request, followed by `data_bytes` of the offending header.
    #[must_use]
    pub fn from_host(fes: FatalErrorStatus, fei: u32, data_bytes: usize) -> Self {
        Self::new(PduType::H2cTermReq, fes, fei, data_bytes)
    }

    /// The status, where it is a known one.
    #[must_use]
    pub fn status(&self) -> Option<FatalErrorStatus> {
        FatalErrorStatus::from_wire(self.fes.get())
    }
}

/// Command Capsule (TCP, section 3.6.2). In-capsule data may follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CapsuleCmd {
    /// The common header, bytes 7:0.
    pub common: CommonHeader,
    /// NVMe-oF Command Capsule SQE, bytes 71:8.
    pub ccsqe: SubmissionEntry,
}

const _: () = assert!(size_of::<CapsuleCmd>() == HLEN_CAPSULE_CMD as usize);

impl CapsuleCmd {
    /// A capsule with `data_bytes` of in-capsule data.
    #[must_use]
    pub fn new(ccsqe: SubmissionEntry, data_bytes: u32) -> Self {
        Self {
            common: CommonHeader::new(PduType::CapsuleCmd, 0, data_bytes),
            ccsqe,
        }
    }
}

/// Response Capsule (TCP, section 3.6.2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CapsuleResp {
    /// The common header, bytes 7:0.
    pub common: CommonHeader,
    /// NVMe-oF Response Capsule CQE, bytes 23:8.
    pub rccqe: CompletionEntry,
}

const _: () = assert!(size_of::<CapsuleResp>() == HLEN_CAPSULE_RESP as usize);

impl CapsuleResp {
    /// A capsule with this completion.
    #[must_use]
    pub fn new(rccqe: CompletionEntry) -> Self {
        Self {
            common: CommonHeader::new(PduType::CapsuleResp, 0, 0),
            rccqe,
        }
    }
}

/// Host to Controller Data Transfer (TCP, section 3.6.2). The data follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct H2cData {
    /// The common header, bytes 7:0.
    pub common: CommonHeader,
    /// Command Capsule CID, bytes 9:8.
    pub cccid: U16,
    /// Transfer Tag of the R2T that asked for the data, bytes 11:10.
    pub ttag: U16,
    /// Data Offset from the start of the command's data, bytes 15:12.
    pub datao: U32,
    /// Data Length in bytes, bytes 19:16.
    pub datal: U32,
    /// Reserved, bytes 23:20.
    pub reserved: U32,
}

const _: () = assert!(size_of::<H2cData>() == HLEN_H2C_DATA as usize);

impl H2cData {
    /// A PDU with `datal` bytes of the command's data from `datao`.
    #[must_use]
    pub fn new(cccid: u16, ttag: u16, datao: u32, datal: u32, last: bool) -> Self {
        let flags = if last { FLAG_H2C_LAST_PDU } else { 0 };
        Self {
            common: CommonHeader::new(PduType::H2cData, flags, datal),
            cccid: U16::new(cccid),
            ttag: U16::new(ttag),
            datao: U32::new(datao),
            datal: U32::new(datal),
            reserved: U32::ZERO,
        }
    }
}

/// Controller to Host Data Transfer (TCP, section 3.6.2). The data follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct C2hData {
    /// The common header, bytes 7:0.
    pub common: CommonHeader,
    /// Command Capsule CID, bytes 9:8.
    pub cccid: U16,
    /// Reserved, bytes 11:10.
    pub reserved1: U16,
    /// Data Offset from the start of the command's data, bytes 15:12.
    pub datao: U32,
    /// Data Length in bytes, bytes 19:16.
    pub datal: U32,
    /// Reserved, bytes 23:20.
    pub reserved2: U32,
}

const _: () = assert!(size_of::<C2hData>() == HLEN_C2H_DATA as usize);

impl C2hData {
    /// A PDU with `datal` bytes of the command's data from `datao`; `flags` is of
    /// [`FLAG_C2H_LAST_PDU`] and [`FLAG_C2H_SUCCESS`].
    #[must_use]
    pub fn new(cccid: u16, datao: u32, datal: u32, flags: u8) -> Self {
        Self {
            common: CommonHeader::new(PduType::C2hData, flags, datal),
            cccid: U16::new(cccid),
            reserved1: U16::ZERO,
            datao: U32::new(datao),
            datal: U32::new(datal),
            reserved2: U32::ZERO,
        }
    }
}

/// Ready to Transfer (TCP, section 3.6.2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct R2t {
    /// The common header, bytes 7:0.
    pub common: CommonHeader,
    /// Command Capsule CID, bytes 9:8.
    pub cccid: U16,
    /// Transfer Tag that the data shall carry, bytes 11:10.
    pub ttag: U16,
    /// Requested Data Offset, bytes 15:12.
    pub r2to: U32,
    /// Requested Data Length in bytes, bytes 19:16.
    pub r2tl: U32,
    /// Reserved, bytes 23:20.
    pub reserved: U32,
}

const _: () = assert!(size_of::<R2t>() == HLEN_R2T as usize);

impl R2t {
    /// A request for `r2tl` bytes of the command's data from `r2to`.
    #[must_use]
    pub fn new(cccid: u16, ttag: u16, r2to: u32, r2tl: u32) -> Self {
        Self {
            common: CommonHeader::new(PduType::R2t, 0, 0),
            cccid: U16::new(cccid),
            ttag: U16::new(ttag),
            r2to: U32::new(r2to),
            r2tl: U32::new(r2tl),
            reserved: U32::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r2t_as_it_lies_on_the_wire() {
        let pdu = R2t::new(0x1234, 0xBEEF, 0x2000, 0x1_0000);
        let expected = [
            0x09, 0, 24, 0, 24, 0, 0, 0, 0x34, 0x12, 0xEF, 0xBE, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0,
            0, 0,
        ];
        assert_eq!(pdu.as_bytes(), expected);
        let back = R2t::read_from_bytes(&expected).unwrap();
        assert_eq!(back.r2tl.get(), 0x1_0000);
    }

    #[test]
    fn digests_move_the_data() {
        let header = C2hData::new(1, 0, 4096, FLAG_C2H_LAST_PDU).common;
        assert_eq!((header.pdo, header.plen.get()), (24, 4120));
        let header = header.with_digests(true, true, 0);
        assert_eq!((header.pdo, header.plen.get()), (28, 4128));
        assert_eq!(header.flags, 0x07);
        let aligned = C2hData::new(1, 0, 4096, 0)
            .common
            .with_digests(true, false, 64);
        assert_eq!((aligned.pdo, aligned.plen.get()), (64, 4160));
        let without = R2t::new(1, 1, 0, 1).common.with_digests(true, true, 64);
        assert_eq!((without.flags, without.pdo, without.plen.get()), (1, 0, 28));
    }

    #[test]
    fn types_and_statuses_by_number() {
        let known = (0..=u8::MAX).filter_map(PduType::from_wire);
        assert!(
            known
                .clone()
                .all(|kind| PduType::from_wire(kind as u8) == Some(kind))
        );
        assert_eq!(known.count(), 9);
        assert!(PduType::from_wire(0x08).is_none());
        assert!(FatalErrorStatus::from_wire(0).is_none());
        for fes in 1..=6 {
            assert_eq!(
                FatalErrorStatus::from_wire(fes).map(|known| known as u16),
                Some(fes)
            );
        }
        let pdu = TermReq::from_controller(FatalErrorStatus::PduSequenceError, 0, 500);
        assert_eq!((pdu.common.pdu_type, pdu.common.plen.get()), (3, 152));
    }
}
