//! Controller properties (registers, on PCIe): their offsets, and the bit fields of those that make
//! a controller's life cycle (Base, section 3.1.4).

use std::fmt;

/// Controller Capabilities, 8 bytes.
pub const CAP: u32 = 0x00;
/// Version, 4 bytes.
pub const VS: u32 = 0x08;
/// Interrupt Mask Set, 4 bytes. Not over fabrics.
pub const INTMS: u32 = 0x0C;
/// Interrupt Mask Clear, 4 bytes. Not over fabrics.
pub const INTMC: u32 = 0x10;
/// Controller Configuration, 4 bytes.
pub const CC: u32 = 0x14;
/// Controller Status, 4 bytes.
pub const CSTS: u32 = 0x1C;
/// NVM Subsystem Reset, 4 bytes.
pub const NSSR: u32 = 0x20;
/// Admin Queue Attributes, 4 bytes. Not over fabrics.
pub const AQA: u32 = 0x24;
/// Admin Submission Queue Base Address, 8 bytes. Not over fabrics.
pub const ASQ: u32 = 0x28;
/// Admin Completion Queue Base Address, 8 bytes. Not over fabrics.
pub const ACQ: u32 = 0x30;
/// Controller Memory Buffer Location, 4 bytes. Not over fabrics.
pub const CMBLOC: u32 = 0x38;
/// Controller Memory Buffer Size, 4 bytes. Not over fabrics.
pub const CMBSZ: u32 = 0x3C;
/// Boot Partition Information, 4 bytes.
pub const BPINFO: u32 = 0x40;
/// Boot Partition Read Select, 4 bytes.
pub const BPRSEL: u32 = 0x44;
/// Boot Partition Memory Buffer Location, 8 bytes.
pub const BPMBL: u32 = 0x48;
/// Controller Memory Buffer Memory Space Control, 8 bytes. Not over fabrics.
pub const CMBMSC: u32 = 0x50;
/// Controller Memory Buffer Status, 4 bytes. Not over fabrics.
pub const CMBSTS: u32 = 0x58;
/// Controller Memory Buffer Elasticity Buffer Size, 4 bytes. Not over fabrics.
pub const CMBEBS: u32 = 0x5C;
/// Controller Memory Buffer Sustained Write Throughput, 4 bytes. Not over fabrics.
pub const CMBSWTP: u32 = 0x60;
/// NVM Subsystem Shutdown, 4 bytes.
pub const NSSD: u32 = 0x64;
/// Controller Ready Timeouts, 4 bytes.
pub const CRTO: u32 = 0x68;
/// Submission Queue 0 Tail Doorbell, 4 bytes: the first doorbell. PCIe only.
pub const SQ0TDBL: u32 = 0x1000;

/// What is written to NSSR to reset the subsystem: "NVMe".
pub const NSSR_RESET: u32 = 0x4E56_4D65;

macro_rules! fields {
    ($type:ident($raw:ty): $(
        $(#[doc = $doc:literal])+
        $get:ident, $with:ident: $of:ty = $shift:literal, $width:literal;
    )*) => {
        impl $type {
            $(
                $(#[doc = $doc])+
                #[must_use]
                pub const fn $get(self) -> $of {
                    (self.0 >> $shift & ((1 << $width) - 1)) as $of
                }

                #[doc = concat!("This value with another [`", stringify!($get), "`](Self::",
                    stringify!($get), "); bits that have no room are dropped.")]
                #[must_use]
                pub const fn $with(self, value: $of) -> Self {
                    let mask = ((1 << $width) - 1) as $raw;
                    Self(self.0 & !(mask << $shift) | (value as $raw & mask) << $shift)
                }
            )*
        }
    };
}

macro_rules! flags {
    ($type:ident: $(
        $(#[doc = $doc:literal])+
        $get:ident, $with:ident = $shift:literal;
    )*) => {
        impl $type {
            $(
                $(#[doc = $doc])+
                #[must_use]
                pub const fn $get(self) -> bool {
                    self.0 >> $shift & 1 != 0
                }

                #[doc = concat!("This value with [`", stringify!($get), "`](Self::",
                    stringify!($get), ") set or cleared.")]
                #[must_use]
                pub const fn $with(self, on: bool) -> Self {
                    let bit = 1 << $shift;
                    Self(if on { self.0 | bit } else { self.0 & !bit })
                }
            )*
        }
    };
}

/// Controller Capabilities (Base, section 3.1.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cap(pub u64);

fields! { Cap(u64):
    /// Maximum Queue Entries Supported, bits 15:0; 0's based.
    mqes, with_mqes: u16 = 0, 16;
    /// Arbitration Mechanism Supported beside round robin, bits 18:17.
    ams, with_ams: u8 = 17, 2;
    /// Timeout until CSTS.RDY follows CC.EN, bits 31:24; in 500 ms.
    to, with_to: u8 = 24, 8;
    /// Doorbell Stride, bits 35:32: 2^(2 + DSTRD) bytes.
    dstrd, with_dstrd: u8 = 32, 4;
    /// Command Sets Supported, bits 44:37: the `CAP_CSS_` bits.
    css, with_css: u8 = 37, 8;
    /// Controller Power Scope, bits 47:46.
    cps, with_cps: u8 = 46, 2;
    /// Memory Page Size Minimum, bits 51:48: 2^(12 + MPSMIN) bytes.
    mpsmin, with_mpsmin: u8 = 48, 4;
    /// Memory Page Size Maximum, bits 55:52: 2^(12 + MPSMAX) bytes.
    mpsmax, with_mpsmax: u8 = 52, 4;
    /// Controller Ready Modes Supported, bits 60:59: the `CAP_CRMS_` bits.
    crms, with_crms: u8 = 59, 2;
}

flags! { Cap:
    /// Contiguous Queues Required, bit 16.
    cqr, with_cqr = 16;
    /// NVM Subsystem Reset Supported, bit 36.
    nssrs, with_nssrs = 36;
    /// Boot Partition Support, bit 45.
    bps, with_bps = 45;
    /// Persistent Memory Region Supported, bit 56.
    pmrs, with_pmrs = 56;
    /// Controller Memory Buffer Supported, bit 57.
    cmbs, with_cmbs = 57;
    /// NVM Subsystem Shutdown Supported, bit 58.
    nsss, with_nsss = 58;
    /// NVM Subsystem Shutdown Enhancements Supported, bit 61.
    nsses, with_nsses = 61;
}

/// The bit of CAP.CSS for the NVM command set.
pub const CAP_CSS_NVM: u8 = 1;
/// The bit of CAP.CSS for one or more I/O command sets, as the Identify I/O Command Set structure
/// lists them.
pub const CAP_CSS_IOCSS: u8 = 1 << 6;
/// The bit of CAP.CSS for no I/O command set: admin commands alone.
pub const CAP_CSS_NOIOCSS: u8 = 1 << 7;
/// The bit of CAP.CRMS for Controller Ready With Media.
pub const CAP_CRMS_CRWMS: u8 = 1;
/// The bit of CAP.CRMS for Controller Ready Independent of Media.
pub const CAP_CRMS_CRIMS: u8 = 2;

/// Version (Base, section 3.1.4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vs(pub u32);

impl Vs {
    /// Version 1.3.
    pub const V1_3: Self = Self::new(1, 3, 0);
    /// Version 1.4.
    pub const V1_4: Self = Self::new(1, 4, 0);
    /// Version 2.0.
    pub const V2_0: Self = Self::new(2, 0, 0);
    /// Version 2.1.
    pub const V2_1: Self = Self::new(2, 1, 0);

    /// The version of these numbers.
    #[must_use]
    pub const fn new(mjr: u16, mnr: u8, ter: u8) -> Self {
        Self((mjr as u32) << 16 | (mnr as u32) << 8 | ter as u32)
    }

    /// Major Version Number, bits 31:16.
    #[must_use]
    pub const fn mjr(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Minor Version Number, bits 15:8.
    #[must_use]
    pub const fn mnr(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Tertiary Version Number, bits 7:0.
    #[must_use]
    pub const fn ter(self) -> u8 {
        self.0 as u8
    }
}

impl fmt::Display for Vs {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.mjr(), self.mnr())?;
        match self.ter() {
            0 => Ok(()),
            ter => write!(out, ".{ter}"),
        }
    }
}

/// Controller Configuration (Base, section 3.1.4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cc(pub u32);

flags! { Cc:
    /// Enable, bit 0.
    en, with_en = 0;
    /// Controller Ready Independent of Media Enable, bit 24.
    crime, with_crime = 24;
}

fields! { Cc(u32):
    /// I/O Command Set Selected, bits 6:4: the `CC_CSS_` values.
    css, with_css: u8 = 4, 3;
    /// Memory Page Size, bits 10:7: 2^(12 + MPS) bytes.
    mps, with_mps: u8 = 7, 4;
    /// Arbitration Mechanism Selected, bits 13:11; 0 is round robin.
    ams, with_ams: u8 = 11, 3;
    /// I/O Submission Queue Entry Size, bits 19:16: 2^n bytes; 6.
    iosqes, with_iosqes: u8 = 16, 4;
    /// I/O Completion Queue Entry Size, bits 23:20: 2^n bytes; 4.
    iocqes, with_iocqes: u8 = 20, 4;
}

/// Admin Queue Attributes (Base, section 3.1.4.8). PCIe only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Aqa(pub u32);

fields! { Aqa(u32):
    /// Admin Submission Queue Size, bits 11:0; 0's based.
    asqs, with_asqs: u16 = 0, 12;
    /// Admin Completion Queue Size, bits 27:16; 0's based.
    acqs, with_acqs: u16 = 16, 12;
}

/// The offset of the Submission Queue Tail Doorbell of queue `qid` (PCIe Transport, section 3.1.2).
#[must_use]
pub const fn sq_tail_doorbell(qid: u16, dstrd: u8) -> u32 {
    SQ0TDBL + (2 * qid as u32) * (4 << dstrd)
}

/// The offset of the Completion Queue Head Doorbell of queue `qid` (PCIe Transport, section 3.1.2).
#[must_use]
pub const fn cq_head_doorbell(qid: u16, dstrd: u8) -> u32 {
    SQ0TDBL + (2 * qid as u32 + 1) * (4 << dstrd)
}

/// CC.CSS: the NVM command set.
pub const CC_CSS_NVM: u8 = 0;
/// CC.CSS: all supported I/O command sets.
pub const CC_CSS_ALL: u8 = 6;
/// CC.CSS: admin commands alone.
pub const CC_CSS_ADMIN_ONLY: u8 = 7;
/// CC.IOSQES of entries of 64 bytes.
pub const IOSQES_64: u8 = 6;
/// CC.IOCQES of entries of 16 bytes.
pub const IOCQES_16: u8 = 4;

/// CC.SHN, Shutdown Notification: what the host asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Shn {
    /// No notification, no effect.
    None = 0,
    /// A normal shutdown.
    Normal = 1,
    /// An abrupt shutdown.
    Abrupt = 2,
    /// The reserved value.
    Reserved = 3,
}

impl Cc {
    /// Shutdown Notification, bits 15:14.
    #[must_use]
    pub const fn shn(self) -> Shn {
        match self.0 >> 14 & 3 {
            0 => Shn::None,
            1 => Shn::Normal,
            2 => Shn::Abrupt,
            _ => Shn::Reserved,
        }
    }

    /// This value with another Shutdown Notification.
    #[must_use]
    pub const fn with_shn(self, shn: Shn) -> Self {
        Self(self.0 & !(3 << 14) | (shn as u32) << 14)
    }
}

/// Controller Status (Base, section 3.1.4.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Csts(pub u32);

flags! { Csts:
    /// Ready, bit 0.
    rdy, with_rdy = 0;
    /// Controller Fatal Status, bit 1.
    cfs, with_cfs = 1;
    /// NVM Subsystem Reset Occurred, bit 4.
    nssro, with_nssro = 4;
    /// Processing Paused, bit 5.
    pp, with_pp = 5;
    /// Shutdown Type, bit 6: the status is that of a subsystem shutdown.
    st, with_st = 6;
}

/// CSTS.SHST, Shutdown Status: how far a shutdown is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Shst {
    /// Normal operation: none was asked for.
    Normal = 0,
    /// A shutdown is under way.
    Occurring = 1,
    /// A shutdown is complete.
    Complete = 2,
    /// The reserved value.
    Reserved = 3,
}

impl Csts {
    /// Shutdown Status, bits 3:2.
    #[must_use]
    pub const fn shst(self) -> Shst {
        match self.0 >> 2 & 3 {
            0 => Shst::Normal,
            1 => Shst::Occurring,
            2 => Shst::Complete,
            _ => Shst::Reserved,
        }
    }

    /// This value with another Shutdown Status.
    #[must_use]
    pub const fn with_shst(self, shst: Shst) -> Self {
        Self(self.0 & !(3 << 2) | (shst as u32) << 2)
    }
}

/// Controller Ready Timeouts (Base, section 3.1.4.20).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Crto(pub u32);

fields! { Crto(u32):
    /// Controller Ready With Media Timeout, bits 15:0; in 500 ms.
    crwmt, with_crwmt: u16 = 0, 16;
    /// Controller Ready Independent of Media Timeout, bits 31:16; in 500 ms.
    crimt, with_crimt: u16 = 16, 16;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_bit_by_bit() {
        let cap = Cap::default()
            .with_mqes(127)
            .with_cqr(true)
            .with_to(15)
            .with_css(CAP_CSS_NVM)
            .with_crms(CAP_CRMS_CRWMS);
        assert_eq!(cap.0, 0x0800_0020_0F01_007F);
        assert_eq!(
            (cap.mqes(), cap.to(), cap.css(), cap.crms()),
            (127, 15, 1, 1)
        );
        assert!(cap.cqr() && !cap.nssrs());
        let all = Cap(u64::MAX);
        assert_eq!(
            (
                all.mpsmin(),
                all.mpsmax(),
                all.dstrd(),
                all.ams(),
                all.cps()
            ),
            (15, 15, 15, 3, 3)
        );
        assert_eq!(all.with_css(0).0, !(0xFF << 37));
        assert_eq!(Cap(0).with_dstrd(0xFF).0, 0xF << 32);
    }

    #[test]
    fn a_linux_host_enables_the_controller() {
        let cc = Cc(0x0046_0001);
        assert!(cc.en());
        assert_eq!(
            (cc.css(), cc.mps(), cc.ams(), cc.shn()),
            (CC_CSS_NVM, 0, 0, Shn::None)
        );
        assert_eq!((cc.iosqes(), cc.iocqes()), (IOSQES_64, IOCQES_16));
        let built = Cc::default()
            .with_en(true)
            .with_iosqes(IOSQES_64)
            .with_iocqes(IOCQES_16);
        assert_eq!(built, cc);
        assert_eq!(cc.with_shn(Shn::Normal).0, 0x0046_4001);
        assert_eq!(cc.with_shn(Shn::Abrupt).with_en(false).0, 0x0046_8000);
        let csts = Csts::default().with_rdy(true).with_shst(Shst::Complete);
        assert_eq!(csts.0, 0x09);
        assert_eq!(csts.with_shst(Shst::Occurring).shst(), Shst::Occurring);
        assert_eq!(Csts(0x0E).shst(), Shst::Reserved);
    }

    #[test]
    fn versions() {
        assert_eq!(Vs::V1_4.0, 0x0001_0400);
        assert_eq!(
            (Vs::V2_1.to_string(), Vs::new(1, 2, 1).to_string()),
            ("2.1".into(), "1.2.1".into())
        );
        assert!(Vs::V1_3 < Vs::V2_0);
        assert_eq!(Crto(0).with_crwmt(15).with_crimt(1).0, 0x0001_000F);
    }
}
