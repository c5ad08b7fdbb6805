//! Index pages, sequences: told apart by their special space, then masked as the access method's `*_mask` does.

use super::{
    HEADER, PAGE, clear_u16, keep_header, mask_content, mask_hole, mask_hole_if_set, mask_line_flags, u16_at,
    u32_at,
};

/// Last two bytes of a page: the identifier (or, in B-trees, the vacuum cycle, which stays below them).
const PAGE_ID: usize = PAGE - 2;

/// `HASHO_PAGE_ID` (hash.h), `GIST_PAGE_ID` (gist.h), `SPGIST_PAGE_ID` (spgist_private.h), `MAX_BT_CYCLE_ID` (nbtree.h).
const HASH: u16 = 0xFF80;
const GIST: u16 = 0xFF81;
const SPGIST: u16 = 0xFF82;
const MAX_BT_CYCLE: u16 = 0xFF7F;
/// `BRIN_PAGETYPE_META`, `_REVMAP`, `_REGULAR` (brin_page.h).
const BRIN_META: u16 = 0xF091;
const BRIN_REVMAP: u16 = 0xF092;
const BRIN_REGULAR: u16 = 0xF093;
/// `SEQ_MAGIC` (sequence.c), the first four bytes of the special space.
const SEQUENCE: u32 = 0x1717;
/// All flags GIN knows (ginblock.h); anything above is no GIN page.
const GIN_FLAGS: u16 = 0x01FF;
/// `GIN_DELETED`.
const GIN_DELETED: u16 = 1 << 2;

/// B-tree, hash and GiST have 16 bytes.
pub(super) fn mask_special_16(page: &mut [u8; PAGE]) {
    match u16_at(page, PAGE_ID) {
        HASH => hash(page),
        GIST => gist(page),
        0..=MAX_BT_CYCLE => btree(page),
        _ => keep_header(page),
    }
}

/// GIN, SP-GiST, BRIN and sequences have 8 bytes. Bloom and indexes of extensions are not known here.
pub(super) fn mask_special_8(page: &mut [u8; PAGE], only_page: bool) {
    if only_page && u32_at(page, PAGE - 8) == SEQUENCE {
        // nextval logs a state some fetches ahead and then writes the present one (sequence.c, nextval_internal):
        // contents differ on every standby, the position does not.
        return keep_header(page);
    }
    match u16_at(page, PAGE_ID) {
        SPGIST => spgist(page),
        BRIN_REVMAP => {}
        BRIN_META => mask_hole_if_set(page),
        BRIN_REGULAR => {
            mask_hole(page);
            // BRIN_EVACUATE_PAGE is not logged.
            page[PAGE - 4..PAGE - 2].fill(0);
        }
        flags if flags & !GIN_FLAGS == 0 => gin(page, flags),
        _ => keep_header(page),
    }
}

/// `btree_mask` (nbtxlog.c).
fn btree(page: &mut [u8; PAGE]) {
    const FLAGS: usize = PAGE - 4;
    const CYCLE: usize = PAGE - 2;
    const LEAF: u16 = 1;
    const DELETED: u16 = 1 << 2;
    /// `BTP_SPLIT_END | BTP_HAS_GARBAGE`.
    const HINTS: u16 = 1 << 5 | 1 << 6;
    mask_hole(page);
    let flags = u16_at(page, FLAGS);
    if flags & DELETED != 0 {
        // Nothing refers to what is left in it; replay may initialise it anew (majors before 14 mask it likewise).
        mask_content(page, PAGE - 16);
    } else if flags & LEAF != 0 {
        mask_line_flags(page);
    }
    clear_u16(page, FLAGS, HINTS);
    page[CYCLE..].fill(0);
}

/// `hash_mask` (hash_xlog.c).
fn hash(page: &mut [u8; PAGE]) {
    const FLAGS: usize = PAGE - 4;
    const TYPE: u16 = 0xF;
    const OVERFLOW: u16 = 1;
    const BUCKET: u16 = 2;
    /// `LH_PAGE_HAS_DEAD_TUPLES`.
    const HINT: u16 = 1 << 7;
    mask_hole(page);
    match u16_at(page, FLAGS) & TYPE {
        0 => mask_content(page, PAGE - 16),
        OVERFLOW | BUCKET => mask_line_flags(page),
        _ => {}
    }
    clear_u16(page, FLAGS, HINT);
}

/// `gist_mask` (gistxlog.c).
fn gist(page: &mut [u8; PAGE]) {
    const NSN: usize = PAGE - 16;
    const FLAGS: usize = PAGE - 4;
    const LEAF: u16 = 1;
    /// `F_TUPLES_DELETED | F_FOLLOW_RIGHT | F_HAS_GARBAGE`.
    const HINTS: u16 = 1 << 2 | 1 << 3 | 1 << 4;
    mask_hole(page);
    page[NSN..NSN + 8].fill(0);
    if u16_at(page, FLAGS) & LEAF != 0 {
        mask_line_flags(page);
    }
    clear_u16(page, FLAGS, HINTS);
}

/// `gin_mask` (ginxlog.c).
fn gin(page: &mut [u8; PAGE], flags: u16) {
    if flags & GIN_DELETED != 0 {
        // Replay makes it anew, with fewer flags (ginRedoDeleteListPages).
        mask_content(page, PAGE);
    } else {
        mask_hole_if_set(page);
    }
}

/// `spg_mask` (spgxlog.c); and of the meta page the cache of last used pages, which is written without a record
/// (spgutils.c, `SpGistUpdateMetaPage`).
fn spgist(page: &mut [u8; PAGE]) {
    const META: u16 = 1;
    mask_hole(page);
    if u16_at(page, PAGE - 8) & META != 0 {
        // The magic number stays.
        page[HEADER + 4..PAGE - 8].fill(0);
    }
}
