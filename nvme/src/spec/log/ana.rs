//! The Asymmetric Namespace Access log page (LID 0Ch), Base 2.1 section 5.1.12.1.13: a header, then for each group a
//! descriptor and the identifiers of its namespaces.

use core::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Header of the Asymmetric Namespace Access log page.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
pub struct AnaLogHeader {
    /// Change count; it rolls over.
    pub chgcnt: U64,
    /// Number of ANA group descriptors.
    pub ngrps: U16,
    _reserved10: [u8; 6],
}

const _: () = {
    assert!(size_of::<AnaLogHeader>() == 16);
    assert!(offset_of!(AnaLogHeader, ngrps) == 8);
};

impl AnaLogHeader {
    /// The header of a page of `ngrps` groups.
    pub fn new(chgcnt: u64, ngrps: u16) -> Self {
        Self {
            chgcnt: U64::new(chgcnt),
            ngrps: U16::new(ngrps),
            _reserved10: [0; 6],
        }
    }
}

/// Head of an ANA group descriptor; `nnsids` namespace identifiers of 4 bytes follow it.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
pub struct AnaGroupDescriptor {
    /// ANA group ID.
    pub grpid: U32,
    /// Number of namespace identifiers that follow.
    pub nnsids: U32,
    /// Change count of the group; it rolls over.
    pub chgcnt: U64,
    /// Asymmetric namespace access state in bits 3:0, see [`AnaState`].
    pub state: u8,
    _reserved17: [u8; 15],
}

const _: () = {
    assert!(size_of::<AnaGroupDescriptor>() == 32);
    assert!(offset_of!(AnaGroupDescriptor, nnsids) == 4);
    assert!(offset_of!(AnaGroupDescriptor, chgcnt) == 8);
    assert!(offset_of!(AnaGroupDescriptor, state) == 16);
};

impl AnaGroupDescriptor {
    /// The descriptor of a group in `state` whose `nnsids` identifiers follow.
    pub fn new(grpid: u32, nnsids: u32, chgcnt: u64, state: AnaState) -> Self {
        Self {
            grpid: U32::new(grpid),
            nnsids: U32::new(nnsids),
            chgcnt: U64::new(chgcnt),
            state: state as u8,
            _reserved17: [0; 15],
        }
    }

    /// The group's state; none where the specification reserves the value.
    pub fn ana_state(&self) -> Option<AnaState> {
        AnaState::from_field(self.state)
    }
}

/// Asymmetric namespace access states, Base 2.1 section 8.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AnaState {
    /// ANA Optimized.
    Optimized = 0x1,
    /// ANA Non-Optimized.
    NonOptimized = 0x2,
    /// ANA Inaccessible.
    Inaccessible = 0x3,
    /// ANA Persistent Loss.
    PersistentLoss = 0x4,
    /// ANA Change.
    Change = 0xf,
}

impl AnaState {
    /// The state in bits 3:0 of `field`; none where the specification reserves the value.
    pub fn from_field(field: u8) -> Option<Self> {
        Some(match field & 0xf {
            0x1 => Self::Optimized,
            0x2 => Self::NonOptimized,
            0x3 => Self::Inaccessible,
            0x4 => Self::PersistentLoss,
            0xf => Self::Change,
            _ => return None,
        })
    }
}

/// The log specific parameter (LSP) of this page.
pub mod ana_lsp {
    /// Return groups only: descriptors without namespace identifiers (RGO).
    pub const GROUPS_ONLY: u8 = 1 << 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_survive_the_field() {
        for field in 0..=u8::MAX {
            if let Some(state) = AnaState::from_field(field) {
                assert_eq!(state as u8, field & 0xf);
            }
        }
        assert_eq!(AnaState::from_field(0), None);
        assert_eq!(AnaState::from_field(5), None);
    }

    #[test]
    fn descriptor_lies_as_on_the_wire() {
        let descriptor = AnaGroupDescriptor::new(1, 2, 3, AnaState::Change);
        let expected = [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0xf, 0];
        assert_eq!(descriptor.as_bytes()[..18], expected);
        assert_eq!(
            AnaLogHeader::new(7, 1).as_bytes()[..10],
            [7, 0, 0, 0, 0, 0, 0, 0, 1, 0]
        );
    }
}
