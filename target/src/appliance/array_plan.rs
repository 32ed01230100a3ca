//! What an array is asked to be, by the configuration or an operator, before its members are looked at.

use std::time::Duration;

use corebay_conf::appliance;
use corebay_raid::{
    Patience,
    array::Assembled,
    geometry::{Consistency, Geometry, Level, Wish},
    state::Uuid,
    sweep::Pace,
};

use super::arrays::ArrayMedium;

/// What an array is to be, and what is to be done for it.
#[derive(Clone, Debug)]
pub struct ArrayPlan {
    /// Its name.
    pub name: String,
    /// How it spreads its data.
    pub level: Level,
    /// Its members.
    pub roles: usize,
    /// The strip of a new one.
    pub strip_bytes: u32,
    /// How a new one survives crashes.
    pub consistency: Consistency,
    /// The mirrored zone of a new one; else the usual one.
    pub zone_bytes: Option<u64>,
    /// It is made where its members are blank.
    pub create: bool,
    /// How fast sweeps go over it.
    pub pace: Pace,
    /// How often it is scrubbed by itself.
    pub scrub: Option<Duration>,
    /// How long its members may take.
    pub patience: Patience,
    /// It was made while the appliance ran: what its members call it.
    pub uuid: Option<Uuid>,
    /// Whatever its members say it is: it is not compared with what is asked for.
    pub as_found: bool,
    /// Names of disks whose content may be lost, and maybe its own: then stale members are taken.
    pub lose: Vec<String>,
}

impl ArrayPlan {
    /// Of what a configuration says.
    pub fn of(array: &appliance::Array) -> Self {
        let mib = |size: corebay_conf::Size| u32::try_from(size.bytes() >> 20).unwrap_or(u32::MAX);
        Self {
            name: array.name.clone(),
            level: array.level,
            roles: array.roles,
            strip_bytes: u32::try_from(array.strip.bytes()).unwrap_or(u32::MAX),
            consistency: array.consistency,
            zone_bytes: array.zone.map(|zone| zone.bytes()),
            create: array.create,
            pace: Pace {
                floor_mib_s: mib(array.rebuild_floor),
                ceiling_mib_s: array.rebuild_ceiling.map_or(0, mib),
            },
            scrub: array.scrub,
            patience: array.patience,
            uuid: array.kept.map(|uuid| Uuid(*uuid.as_bytes())),
            as_found: array.kept.is_some(),
            lose: Vec::new(),
        }
    }

    /// Of an array that runs, for when it is looked for again.
    pub fn again(array: &ArrayMedium) -> Self {
        let assembled = array.assembled();
        let geometry = assembled.geometry();
        let wish = geometry.wish();
        Self {
            name: array.name.clone(),
            level: wish.level,
            roles: wish.roles,
            strip_bytes: wish.strip_bytes,
            consistency: wish.consistency,
            zone_bytes: Some(geometry.zone_bytes()),
            create: false,
            pace: array.pace,
            scrub: array.scrub_every,
            patience: assembled.patience(),
            uuid: Some(assembled.uuid()),
            as_found: true,
            lose: Vec::new(),
        }
    }

    /// What is asked of the members, of which the smallest has so many bytes.
    pub fn wish(&self, block_size: corebay_conf::BlockSize, member_bytes: u64) -> Wish {
        let usual = || Wish::usual_zone_bytes(self.level, member_bytes);
        Wish {
            strip_bytes: self.strip_bytes,
            consistency: self.consistency,
            zone_bytes: self.zone_bytes.unwrap_or_else(usual),
            ..Wish::new(self.level, self.roles, block_size)
        }
    }

    /// Enough scratch memory of a core for an array of so many members, whatever its strip.
    pub fn scratch_bytes(&self) -> usize {
        let mut wish = self.wish(corebay_conf::BlockSize::B4096, 1 << 50);
        wish.strip_bytes = 1 << 20;
        // What is kept of an array may be out of date.
        let most = Wish {
            strip_bytes: wish.strip_bytes,
            ..Wish::new(Level::Raid6, 26, corebay_conf::BlockSize::B4096)
        };
        let geometry = Geometry::new(wish, 1 << 50).or_else(|_| Geometry::new(most, 1 << 50));
        Assembled::scratch_bytes(&geometry.expect("there is such an array"))
    }
}
