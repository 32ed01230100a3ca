//! Owns what an array knows of its members: who has which role, and how good what it holds is.
//!
//! Invariant: a state is written to the members before anything relies on it, each with the next
//! generation; of several states that are found, the newest counts.

use std::fmt;

use arrayvec::ArrayVec;

use crate::geometry::{Geometry, ROLES_MAX};

/// The most spares of an array.
pub const SPARES_MAX: usize = 8;

/// A universally unique identifier of an array or a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, byte) in self.0.iter().enumerate() {
            let dash = if matches!(place, 4 | 6 | 8 | 10) {
                "-"
            } else {
                ""
            };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

/// How good what a role's member holds is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleState {
    /// All of it.
    Active,
    /// None of it: the member failed, was removed or was not there.
    Failed,
    /// The stripes up to a point.
    Rebuilding {
        /// The stripes that are good.
        stripes: u64,
        /// Stripes of regions that are not marked in the dirty map are good too.
        delta: bool,
    },
}

/// A role and the member that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleRecord {
    /// The member.
    pub member: Uuid,
    /// How good it is.
    pub state: RoleState,
}

/// What changes about an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayState {
    /// Counts the states.
    pub generation: u64,
    /// Journal records of other epochs are void.
    pub epoch: u64,
    /// By role.
    pub roles: ArrayVec<RoleRecord, ROLES_MAX>,
    /// Members that wait for a role.
    pub spares: ArrayVec<Uuid, SPARES_MAX>,
    /// By role: the generation in which its member was last taken in, anew or back; 0: never.
    pub taken_in: [u64; ROLES_MAX],
}

impl ArrayState {
    /// A role's member is taken in: it is being rebuilt from now on.
    pub(crate) fn take_in(&mut self, role: usize, delta: bool) {
        self.roles[role].state = RoleState::Rebuilding { stripes: 0, delta };
        self.taken_in[role] = self.generation + 1;
    }

    /// The role of a member.
    #[must_use]
    pub fn role_of(&self, member: Uuid) -> Option<usize> {
        self.roles.iter().position(|role| role.member == member)
    }

    /// True where every role's member is good.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.roles
            .iter()
            .all(|role| role.state == RoleState::Active)
    }

    /// Roles whose member is not all good.
    #[must_use]
    pub fn missing(&self) -> usize {
        let good = |role: &&RoleRecord| role.state != RoleState::Active;
        self.roles.iter().filter(good).count()
    }

    /// True where every block can be read with only the members that are all good.
    #[must_use]
    pub fn is_viable(&self, geometry: &Geometry) -> bool {
        if geometry.copies() == 1 {
            return self.missing() <= geometry.parity();
        }
        (0..geometry.data()).all(|strip| {
            let mut legs = self.roles[geometry.legs_of(strip)].iter();
            legs.any(|role| role.state == RoleState::Active)
        })
    }
}
