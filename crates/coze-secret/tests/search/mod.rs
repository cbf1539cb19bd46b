//! Reads the memory of this very process: where is a secret, and where is it not any more?

use std::{fs::File, io::Read, ops::Range, os::unix::fs::FileExt};

/// A secret that stands nowhere in memory until it is made: kept as the complement of its bytes.
pub(crate) struct Needle([u8; 48]);

impl Needle {
    pub(crate) fn new() -> Self {
        // Letters and digits, so that it is the same bytes in a file, in JSON and on the wire.
        Self(std::array::from_fn(|_| !(fastrand::alphanumeric() as u8)))
    }

    pub(crate) fn make(&self) -> Vec<u8> {
        self.0.iter().map(|byte| !byte).collect()
    }

    fn is_at(&self, window: &[u8]) -> bool {
        window.iter().zip(&self.0).all(|(byte, kept)| *byte == !*kept)
    }
}

/// Searches the memory of this process. All it needs is there before the secret is, so that the search itself does not
/// overwrite what a secret left behind.
pub(crate) struct Search {
    memory: File,
    maps: Vec<u8>,
    chunk: Vec<u8>,
}

impl Search {
    pub(crate) fn new() -> Self {
        let memory = File::open("/proc/self/mem").expect("Linux has it");
        Self { memory, maps: Vec::with_capacity(1024 * 1024), chunk: vec![0; 64 * 1024] }
    }

    /// How often the needle stands in memory.
    pub(crate) fn copies(&mut self, needle: &Needle) -> usize {
        let Self { memory, maps, chunk } = self;
        maps.clear();
        File::open("/proc/self/maps").and_then(|mut file| file.read_to_end(maps)).expect("Linux has it");
        let own = chunk.as_ptr().addr()..chunk.as_ptr().addr() + chunk.len();
        let mut found = 0;
        for region in maps.split(|byte| *byte == b'\n').filter_map(writable) {
            let mut at = region.start;
            while at < region.end {
                chunk.fill(0);
                let size = chunk.len().min(region.end - at);
                // What cannot be read, such as device memory, holds no secret of ours.
                let read = memory.read_at(&mut chunk[..size], at as u64).unwrap_or(0);
                // Windows overlap, so that none is missed at the border of two chunks. What stands in `chunk` is not counted.
                let windows = chunk[..read].windows(needle.0.len()).enumerate();
                found += windows.filter(|(n, window)| !own.contains(&(at + n)) && needle.is_at(window)).count();
                at += if size == chunk.len() { size - needle.0.len() + 1 } else { size };
            }
        }
        chunk.fill(0);
        found
    }
}

/// Only what can be written to can hold a copy.
fn writable(line: &[u8]) -> Option<Range<usize>> {
    let (range, rest) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    rest.starts_with("rw").then_some(number(start)?..number(end)?)
}
