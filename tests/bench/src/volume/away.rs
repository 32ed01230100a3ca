//! Owns measuring what a volume costs on another core than its pool's home: the work of both cores, which
//! one thread turns.

use std::rc::Rc;

use anyhow::Result;
use corebay_core::{disk::ram::RamDisk, mesh::Wakeups};
use corebay_lvol::{Pool, PoolCore, PoolDisk, Volume, VolumeId};

use super::{Bench, DEPTH, Kept, Row, Sample, Work, show};

/// Held against the same by the home core.
pub(super) const ROWS: [&str; 3] = [
    "overwrite, another core",
    "read, another core",
    "first write, another core",
];

impl Bench {
    /// Measures and prints.
    pub(super) fn away(&self, rounds: usize) -> Result<()> {
        let medium = self.medium()?;
        let home = self.touched(self.kept(RamDisk::new(medium.clone(), &self.reactor)))?;
        let there = Kept {
            below: Rc::new(RamDisk::new(medium, &self.away)),
            reactor: self.away.clone(),
            ..home.clone()
        };
        let mut rows = ROWS.map(|what| Row {
            what,
            bare: Vec::new(),
            volume: Vec::new(),
        });
        for _ in 0..rounds {
            let pool = self.pool(PoolDisk::from(home.clone()))?;
            let (id, volume) = self.volume(&pool)?;
            let warm = || self.warm(&pool, home.clone(), &home.read_last);
            warm()?;
            let at_home = self.three(&volume, [""; 3])?;
            drop(volume);
            self.delete(&pool, vec![id])?;
            let (id, volume) = self.volume(&pool)?;
            drop(volume);
            warm()?;
            self.is_away.set(true);
            let away = self.three_away(&pool, id, there.clone());
            self.delete(&pool, vec![id])?;
            self.run(async move { pool.close().await })??;
            self.is_away.set(false);
            for ((row, home), away) in rows.iter_mut().zip(at_home).zip(away?) {
                row.bare.push(home);
                row.volume.push(away);
            }
        }
        show("ram", &rows);
        Ok(())
    }

    fn three_away(
        &self,
        pool: &Pool<Kept<RamDisk>>,
        id: VolumeId,
        there: Kept<RamDisk>,
    ) -> Result<[Sample; 3]> {
        let handle = pool.share(2, Wakeups::None)?;
        let core = PoolCore::open(&handle, &self.away, there)?;
        let volume = Rc::new(Volume::open(&core, &pool.volume_handle(id)?)?);
        self.three(&volume, ROWS)
    }

    /// Of an empty volume: overwrites, reads, first writes.
    fn three(&self, volume: &Rc<Volume<Kept<RamDisk>>>, rows: [&str; 3]) -> Result<[Sample; 3]> {
        let all = (self.blocks, DEPTH);
        let first = self.measure(volume, Work::Write, all, rows[2])?;
        let write = self.measure(volume, Work::Write, all, rows[0])?;
        let read = self.measure(volume, Work::Read, all, rows[1])?;
        Ok([write, read, first])
    }
}
