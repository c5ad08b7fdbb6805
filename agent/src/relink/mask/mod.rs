//! What may differ between a page of a primary and the same page of its standby, taken out of the page.
//!
//! Follows PostgreSQL's own `wal_consistency_checking`: `src/backend/access/common/bufmask.c` and the `*_mask`
//! function of each access method. Unlike PostgreSQL it keeps `pd_lsn`: once primary and standby have stopped
//! at the same checkpoint the positions must be equal, and an older one is the mark of a stale page.
//!
//! Masking is a function of the page alone, so equal pages stay equal; a kind of page it does not know is
//! reduced to its header, which still carries the position. It reads no catalog: the kind is told by the size of
//! the special space and the page identifiers that access methods keep there for `pg_filedump`.

mod heap;
mod index;

/// Bytes of a page. Other block sizes are a build option that no package uses; such pages are compared by header.
pub const PAGE: usize = 8192;
/// `SizeOfPageHeaderData` (bufpage.h).
const HEADER: usize = 24;

/// Fork of a relation, as its file name tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The relation itself.
    Main,
    /// Free space map: not logged, repairs itself, drifts on every standby.
    Fsm,
    /// Visibility map.
    Vm,
    /// What an unlogged relation is reset to.
    Init,
}

/// Offsets in the page header (bufpage.h, `PageHeaderData`).
mod at {
    pub(super) const CHECKSUM: usize = 8;
    pub(super) const FLAGS: usize = 10;
    pub(super) const LOWER: usize = 12;
    pub(super) const UPPER: usize = 14;
    pub(super) const SPECIAL: usize = 16;
    pub(super) const SIZE_VERSION: usize = 18;
    pub(super) const PRUNE_XID: usize = 20;
}

/// `PD_HAS_FREE_LINES | PD_PAGE_FULL | PD_ALL_VISIBLE`: hints (bufmask.c, `mask_page_hint_bits`). The last one is
/// set on a standby only when the page is not already newer (heapam, `heap_xlog_visible`).
const HINT_FLAGS: u16 = 0x0007;

/// Masks one page of a main fork in place. `only_page` says that it is the whole relation: that tells a
/// sequence, which has one page, from a GIN page.
pub fn main_page(page: &mut [u8; PAGE], only_page: bool) {
    if is_unused(page) {
        // A page that a primary added to a heap in bulk is initialised there without a record, and zero on the
        // standby (hio.c, RelationAddExtraBlocks / RelationAddBlocks).
        page.fill(0);
        return;
    }
    mask_header_hints(page);
    let special = usize::from(u16_at(page, at::SPECIAL));
    let size = usize::from(u16_at(page, at::SIZE_VERSION) & 0xFF00);
    if size != PAGE || !(HEADER..=PAGE).contains(&special) || cfg!(target_endian = "big") {
        // Not a layout that is known here (line pointers are bit fields, written for little endian).
        return keep_header(page);
    }
    match PAGE - special {
        0 => heap::mask(page),
        8 => index::mask_special_8(page, only_page),
        16 => index::mask_special_16(page),
        _ => keep_header(page),
    }
}

/// Masks one page of a visibility map in place. Its bits fill what the header calls unused. The position is masked
/// here: bits are also cleared, on both sides, without advancing it (visibilitymap.c, "LSN and WAL").
pub fn vm_page(page: &mut [u8; PAGE]) {
    page[..HEADER].fill(0);
}

/// All zero, or an empty heap page that no record ever touched.
fn is_unused(page: &[u8; PAGE]) -> bool {
    if page.iter().all(|byte| *byte == 0) {
        return true;
    }
    page[..8] == [0; 8]
        && usize::from(u16_at(page, at::LOWER)) == HEADER
        && usize::from(u16_at(page, at::UPPER)) == PAGE
        && usize::from(u16_at(page, at::SPECIAL)) == PAGE
}

fn mask_header_hints(page: &mut [u8; PAGE]) {
    page[at::CHECKSUM..at::CHECKSUM + 2].fill(0);
    clear_u16(page, at::FLAGS, HINT_FLAGS);
    page[at::PRUNE_XID..at::PRUNE_XID + 4].fill(0);
}

/// The hole between line pointers and tuples (bufmask.c, `mask_unused_space`).
fn mask_hole(page: &mut [u8; PAGE]) {
    let lower = usize::from(u16_at(page, at::LOWER));
    let upper = usize::from(u16_at(page, at::UPPER));
    let special = usize::from(u16_at(page, at::SPECIAL));
    if HEADER <= lower && lower <= upper && upper <= special && special <= PAGE {
        page[lower..upper].fill(0);
    }
}

/// As [`mask_hole`], for pages where `pd_lower` may never have been set.
fn mask_hole_if_set(page: &mut [u8; PAGE]) {
    if usize::from(u16_at(page, at::LOWER)) > HEADER {
        mask_hole(page);
    }
}

/// Everything up to `end`, with what the header says of it (bufmask.c, `mask_page_content`).
fn mask_content(page: &mut [u8; PAGE], end: usize) {
    page[HEADER..end].fill(0);
    page[at::LOWER..at::UPPER + 2].fill(0);
}

fn keep_header(page: &mut [u8; PAGE]) {
    page[HEADER..].fill(0);
}

/// One line pointer (itemid.h, `ItemIdData`): 15 bits offset, 2 bits flags, 15 bits length.
#[derive(Debug, Clone, Copy)]
struct Line {
    /// Where in the page the pointer itself is.
    at: usize,
    offset: usize,
    flags: u32,
    length: usize,
}

/// `LP_NORMAL`.
const LP_NORMAL: u32 = 1;
/// The two flag bits within the word.
const LP_FLAG_BITS: u32 = 0b11 << 15;

/// The line pointers, as far as the header can be believed.
fn lines(page: &[u8; PAGE]) -> Vec<Line> {
    let lower = usize::from(u16_at(page, at::LOWER)).min(PAGE);
    let count = lower.saturating_sub(HEADER) / 4;
    let line = |index: usize| {
        let at = HEADER + index * 4;
        let word = u32_at(page, at);
        Line {
            at,
            offset: (word & 0x7FFF) as usize,
            flags: (word >> 15) & 0b11,
            length: (word >> 17) as usize,
        }
    };
    (0..count).map(line).collect()
}

/// Line pointer flags of index leaf pages: `LP_DEAD` is a hint there (bufmask.c, `mask_lp_flags`).
fn mask_line_flags(page: &mut [u8; PAGE]) {
    for line in lines(page).into_iter().filter(|line| line.flags != 0) {
        let word = u32_at(page, line.at) & !LP_FLAG_BITS;
        page[line.at..line.at + 4].copy_from_slice(&word.to_ne_bytes());
    }
}

fn u16_at(page: &[u8; PAGE], at: usize) -> u16 {
    u16::from_ne_bytes([page[at], page[at + 1]])
}

fn u32_at(page: &[u8; PAGE], at: usize) -> u32 {
    u32::from_ne_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

fn clear_u16(page: &mut [u8; PAGE], at: usize, bits: u16) {
    let value = u16_at(page, at) & !bits;
    page[at..at + 2].copy_from_slice(&value.to_ne_bytes());
}

#[cfg(test)]
mod tests;
