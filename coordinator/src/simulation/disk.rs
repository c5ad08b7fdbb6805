//! A coordinator's disk: what was synced stays, of what was written since then a crash keeps any part, torn anywhere.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::Rng;
use redb::StorageBackend;

#[derive(Debug)]
enum Write {
    Bytes(u64, Vec<u8>),
    Length(u64),
}

#[derive(Debug, Default)]
struct Platter {
    /// What a crash cannot take away.
    synced: Vec<u8>,
    /// What a reader sees.
    now: Vec<u8>,
    since: Vec<Write>,
    /// Counts the openings; older ones have lost their disk.
    life: u64,
    /// Syncs that still succeed before the power fails in one.
    fuse: Option<u32>,
    failed: bool,
}

/// The disk itself, which outlives its coordinator.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk(Arc<Mutex<Platter>>);

/// The disk as one life of a coordinator has it open.
#[derive(Debug)]
pub(super) struct Opened {
    disk: Disk,
    life: u64,
}

impl Disk {
    /// For the next life.
    pub(super) fn open(&self) -> Opened {
        let mut platter = self.platter();
        platter.life += 1;
        (platter.fuse, platter.failed) = (None, false);
        Opened { disk: self.clone(), life: platter.life }
    }

    /// Another disk is put in its place.
    pub(super) fn replace(&self) {
        let mut platter = self.platter();
        *platter = Platter { life: platter.life + 1, ..Platter::default() };
    }

    /// The power fails: the tail is torn. Whatever had it open gets errors from now on.
    pub(super) fn crash(&self, dice: &mut impl Rng) {
        let mut platter = self.platter();
        let Platter { synced, since, life, .. } = &mut *platter;
        *life += 1;
        for write in since.drain(..) {
            match write {
                Write::Length(length) if dice.random_bool(0.5) => synced.resize(length as usize, 0),
                Write::Length(_) => {}
                Write::Bytes(offset, bytes) => {
                    let kept = match dice.random_range(0..4) {
                        0 => 0,
                        1 => dice.random_range(0..=bytes.len()),
                        _ => bytes.len(),
                    };
                    put(synced, offset, &bytes[..kept]);
                }
            }
        }
        platter.now = platter.synced.clone();
    }

    /// The power fails in the sync after so many more.
    pub(super) fn burn(&self, syncs: u32) {
        self.platter().fuse = Some(syncs);
    }

    /// Whether it failed because it was to.
    pub(super) fn has_failed(&self) -> bool {
        self.platter().failed
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }
}

fn put(image: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (from, to) = (offset as usize, offset as usize + bytes.len());
    if image.len() < to {
        image.resize(to, 0);
    }
    image[from..to].copy_from_slice(bytes);
}

impl Opened {
    fn platter(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = self.disk.platter();
        if platter.life != self.life || platter.failed {
            return Err(io::Error::other("the simulated power is off"));
        }
        Ok(platter)
    }
}

impl StorageBackend for Opened {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter()?.now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.platter()?;
        let bytes = platter.now.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut platter = self.platter()?;
        platter.now.resize(length as usize, 0);
        platter.since.push(Write::Length(length));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.platter()?;
        put(&mut platter.now, offset, data);
        platter.since.push(Write::Bytes(offset, data.to_vec()));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.platter()?;
        if platter.fuse == Some(0) {
            platter.failed = true;
            return Err(io::Error::other("the simulated power fails"));
        }
        platter.fuse = platter.fuse.map(|left| left - 1);
        let Platter { synced, since, .. } = &mut *platter;
        for write in since.drain(..) {
            match write {
                Write::Length(length) => synced.resize(length as usize, 0),
                Write::Bytes(offset, bytes) => put(synced, offset, &bytes),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn a_crash_keeps_what_was_synced_and_tears_the_rest() {
        let mut torn = 0;
        for seed in 0..50 {
            let disk = Disk::default();
            let opened = disk.open();
            opened.write(0, &[1; 100]).unwrap();
            opened.sync_data().unwrap();
            opened.write(100, &[2; 100]).unwrap();
            disk.crash(&mut StdRng::seed_from_u64(seed));
            assert!(opened.len().is_err(), "the dead cannot read");
            let after = disk.open();
            let mut bytes = vec![0; after.len().unwrap() as usize];
            after.read(0, &mut bytes).unwrap();
            assert_eq!(bytes[..100], [1; 100]);
            torn += usize::from(bytes.len() != 200);
        }
        assert!((1..50).contains(&torn), "{torn}");
    }
}
