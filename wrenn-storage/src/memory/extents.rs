//! The map from guest pages to where their content is.
//!
//! Invariant: extents are sorted, do not overlap, and cover every page of the guest.

use super::PAGE_SIZE;

/// Where the content of a run of guest pages is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: every byte is zero.
    Zero,
    /// In the image's layer number `layer`, from its page `page` on.
    Layer { layer: u32, page: u32 },
}

impl Place {
    /// The place `pages` further on.
    fn advanced(self, pages: u32) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Layer { layer, page } => Self::Layer { layer, page: page + pages },
        }
    }
}

/// A run of guest pages whose content lies in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) first: u32,
    pub(super) pages: u32,
    pub(super) place: Place,
}

impl Extent {
    pub(super) fn end(&self) -> u32 {
        self.first + self.pages
    }

    /// The part of this extent from page `from` on, of at most `pages` pages. `from` lies in the extent.
    fn slice(&self, from: u32, pages: u32) -> Self {
        let skipped = from - self.first;
        Self { first: from, pages: pages.min(self.pages - skipped), place: self.place.advanced(skipped) }
    }
}

/// Sorted extents under construction; neighbours that continue each other in storage become one.
#[derive(Debug, Default)]
pub(super) struct Runs(Vec<Extent>);

impl Runs {
    /// Adds an extent that begins at or after the end of the last one.
    pub(super) fn push(&mut self, next: Extent) {
        if next.pages == 0 {
            return;
        }
        if let Some(last) = self.0.last_mut() {
            debug_assert!(last.end() <= next.first, "extents come in order");
            if last.end() == next.first && last.place.advanced(last.pages) == next.place {
                last.pages += next.pages;
                return;
            }
        }
        self.0.push(next);
    }

    pub(super) fn as_slice(&self) -> &[Extent] {
        &self.0
    }
}

/// Why a list of extents is no map of a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hole {
    /// Extent number `.0` does not begin where the one before it ended, or is empty.
    At(usize),
    /// The last extent does not end at the guest's last page.
    End,
}

/// A total map of the guest's pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExtentMap {
    extents: Vec<Extent>,
}

impl ExtentMap {
    /// Takes extents that cover exactly the pages `0..pages`.
    pub(super) fn new(extents: Vec<Extent>, pages: u32) -> Result<Self, Hole> {
        let mut next = 0u32;
        for (index, extent) in extents.iter().enumerate() {
            let end = extent.first.checked_add(extent.pages).filter(|end| *end <= pages);
            match end {
                Some(end) if extent.first == next && extent.pages > 0 => next = end,
                _ => return Err(Hole::At(index)),
            }
        }
        if next == pages { Ok(Self { extents }) } else { Err(Hole::End) }
    }

    /// A guest whose every page is zero.
    pub(super) fn zero(pages: u32) -> Self {
        Self { extents: vec![Extent { first: 0, pages, place: Place::Zero }] }
    }

    pub(super) fn as_slice(&self) -> &[Extent] {
        &self.extents
    }

    /// The number of the guest's pages.
    pub(super) fn pages(&self) -> u32 {
        self.extents.last().map_or(0, Extent::end)
    }

    /// The extent that holds `page`, cut to begin there. `page` lies in the guest.
    pub(super) fn at(&self, page: u32) -> Extent {
        let index = self.extents.partition_point(|extent| extent.end() <= page);
        self.extents[index].slice(page, u32::MAX)
    }

    /// This map with `newer` laid over it: where `newer` says nothing, this map still holds.
    pub(super) fn overlaid(&self, newer: &[Extent]) -> Self {
        let mut out = Runs::default();
        let mut below = Below { extents: &self.extents, page: 0 };
        for extent in newer {
            below.copy_until(extent.first, &mut out);
            out.push(*extent);
            below.skip_until(extent.end());
        }
        below.copy_until(self.pages(), &mut out);
        Self { extents: out.0 }
    }

    /// The layers that are in use, as `used[layer]`.
    pub(super) fn layers_used(&self, layers: usize) -> Vec<bool> {
        let mut used = vec![false; layers];
        for extent in &self.extents {
            if let Place::Layer { layer, .. } = extent.place {
                used[layer as usize] = true;
            }
        }
        used
    }

    /// Gives every layer the number `numbers[layer]`.
    pub(super) fn renumber(&mut self, numbers: &[u32]) {
        for extent in &mut self.extents {
            if let Place::Layer { layer, .. } = &mut extent.place {
                *layer = numbers[*layer as usize];
            }
        }
    }

    /// How many of the guest's bytes are in layers rather than zero.
    pub(super) fn data_bytes(&self) -> u64 {
        let in_layers = self.extents.iter().filter(|extent| extent.place != Place::Zero);
        in_layers.map(|extent| u64::from(extent.pages) * PAGE_SIZE).sum()
    }
}

/// What is left of the lower map while another is laid over it.
struct Below<'a> {
    extents: &'a [Extent],
    page: u32,
}

impl Below<'_> {
    fn copy_until(&mut self, end: u32, out: &mut Runs) {
        while self.page < end {
            let piece = self.extents[0].slice(self.page, end - self.page);
            out.push(piece);
            self.skip_until(piece.end());
        }
    }

    fn skip_until(&mut self, page: u32) {
        self.page = page;
        while self.extents.first().is_some_and(|extent| extent.end() <= page) {
            self.extents = &self.extents[1..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zero(first: u32, pages: u32) -> Extent {
        Extent { first, pages, place: Place::Zero }
    }

    fn data(first: u32, pages: u32, layer: u32, page: u32) -> Extent {
        Extent { first, pages, place: Place::Layer { layer, page } }
    }

    #[test]
    fn runs_join_only_what_continues_in_storage() {
        let mut runs = Runs::default();
        for extent in [
            data(0, 2, 0, 0),
            data(2, 1, 0, 2),
            data(3, 1, 0, 9),
            data(4, 1, 1, 10),
            zero(5, 1),
            zero(6, 0),
            zero(6, 3),
            zero(10, 1),
        ] {
            runs.push(extent);
        }
        assert_eq!(
            runs.as_slice(),
            [data(0, 3, 0, 0), data(3, 1, 0, 9), data(4, 1, 1, 10), zero(5, 4), zero(10, 1)]
        );
    }

    #[test]
    fn a_map_covers_every_page_once() {
        assert!(ExtentMap::new(vec![zero(0, 4), data(4, 4, 0, 0)], 8).is_ok());
        for (extents, hole) in [
            (vec![], Hole::End),
            (vec![zero(0, 4)], Hole::End),
            (vec![zero(1, 7)], Hole::At(0)),
            (vec![zero(0, 4), zero(5, 3)], Hole::At(1)),
            (vec![zero(0, 4), zero(3, 5)], Hole::At(1)),
            (vec![zero(0, 4), zero(4, 0), zero(4, 4)], Hole::At(1)),
            (vec![zero(0, 4), zero(4, 5)], Hole::At(1)),
            (vec![zero(0, 4), zero(4, u32::MAX)], Hole::At(1)),
        ] {
            assert_eq!(ExtentMap::new(extents, 8), Err(hole));
        }
    }

    #[test]
    fn an_overlay_cuts_and_keeps_what_is_below() {
        let below = ExtentMap::new(vec![data(0, 4, 0, 0), zero(4, 4), data(8, 8, 0, 8)], 16).unwrap();
        let newer = [zero(1, 1), data(3, 2, 1, 0), data(10, 1, 1, 2), zero(15, 1)];
        let map = below.overlaid(&newer);
        assert_eq!(
            map.as_slice(),
            [
                data(0, 1, 0, 0),
                zero(1, 1),
                data(2, 1, 0, 2),
                data(3, 2, 1, 0),
                zero(5, 3),
                data(8, 2, 0, 8),
                data(10, 1, 1, 2),
                data(11, 4, 0, 11),
                zero(15, 1),
            ]
        );
        assert_eq!(ExtentMap::new(map.as_slice().to_vec(), 16), Ok(map.clone()));
        assert_eq!(map.at(12), data(12, 3, 0, 12));
        assert_eq!(map.at(15), zero(15, 1));
        assert_eq!(below.overlaid(&[]), below);
        assert_eq!(below.overlaid(&[zero(0, 16)]), ExtentMap::zero(16));
    }

    #[test]
    fn unused_layers_can_be_found_and_numbers_closed() {
        let mut map = ExtentMap::new(vec![data(0, 1, 0, 0), data(1, 1, 2, 0)], 2).unwrap();
        assert_eq!(map.layers_used(3), [true, false, true]);
        map.renumber(&[0, 0, 1]);
        assert_eq!(map.as_slice(), [data(0, 1, 0, 0), data(1, 1, 1, 0)]);
        assert_eq!(map.data_bytes(), 8192);
    }
}
