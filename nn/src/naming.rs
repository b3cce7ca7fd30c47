//! Names of the linears of a network in the layouts of checkpoints and adapters.
//!
//! An original layout may fuse linears that read the same input into one tensor, stacked by rows; diffusers keeps them
//! separate. Checkpoints and adapters differ in the same way, and both use the table that a network has of its names, e.g.
//! of FLUX:
//!
//! ```text
//! original                      diffusers
//! double_blocks.3.img_attn.qkv  transformer_blocks.3.attn.to_q, .to_k, .to_v
//! single_blocks.3.linear1       single_transformer_blocks.3.attn.to_q, .to_k, .to_v, .proj_mlp
//! ```

use std::{borrow::Cow, cmp::Ordering, fmt, ops::Range};

/// The table of a network's names.
#[derive(Debug)]
pub struct Names {
    /// What the network is called, e.g. `a FLUX transformer`.
    pub network: &'static str,
    /// The same in a word, e.g. `FLUX`.
    pub short: &'static str,
    /// The part of a pipeline that it is, which stands before its modules in the files of diffusers: `transformer` or `unet`.
    pub part: &'static str,
    /// What headers of sd-scripts' files call the module that trains it, and the network.
    pub kohya: (&'static str, &'static str),
    /// Its kinds of blocks, in the order of the model.
    pub stacks: &'static [Stack],
    /// Its linears outside the blocks.
    pub outside: &'static [Outside],
    /// The pairs of factors that UNO and XLabs have names for.
    pub pairs: &'static [Pair],
}

/// A kind of block.
#[derive(Debug)]
pub struct Stack {
    /// What blocks are called in the original layout.
    pub original: &'static str,
    /// What blocks are called in diffusers' layout.
    pub diffusers: &'static str,
    /// The linears of a block.
    pub linears: &'static [Fused],
}

/// A linear of the original layout, as it is called within its block.
#[derive(Debug, PartialEq, Eq)]
pub struct Fused {
    /// In the original layout.
    pub original: &'static str,
    /// In diffusers' layout: names, and their shares of the rows, from the first row to the last.
    pub parts: &'static [(&'static str, usize)],
}

/// A linear outside the blocks.
#[derive(Debug, PartialEq, Eq)]
pub struct Outside {
    /// In the original layout.
    pub original: &'static str,
    /// In diffusers' layout.
    pub diffusers: &'static str,
    /// Does diffusers have the lower half of its rows above the upper one?
    pub swapped: bool,
}

/// A pair of factors under a name of UNO's.
#[derive(Debug)]
pub struct Pair {
    /// Which of the stacks.
    pub stack: usize,
    /// What the pair is called.
    pub name: &'static str,
    /// The linear of the original layout.
    pub original: &'static str,
}

impl Names {
    /// The linear of a block, all by their numbers.
    pub fn place(&'static self, stack: usize, block: usize, linear: usize) -> Place {
        Place { names: self, stack, block, linear }
    }

    /// Where a linear of diffusers' layout stands in the original one, and which of the parts it is.
    pub fn of_diffusers(&'static self, name: &str) -> Option<(Place, usize)> {
        self.find_part(name, '.')
    }

    /// As [`of_diffusers`](Self::of_diffusers), for a name in which every dot is an underscore.
    pub fn of_underscored_diffusers(&'static self, name: &str) -> Option<(Place, usize)> {
        self.find_part(name, '_')
    }

    /// The place of a linear of the original layout.
    pub fn of_original(&'static self, name: &str) -> Option<Place> {
        self.find_fused(name, '.')
    }

    /// The place of a linear of the original layout whose name has every dot as an underscore.
    pub fn of_underscored_original(&'static self, name: &str) -> Option<Place> {
        self.find_fused(name, '_')
    }

    /// The linear outside the blocks that diffusers calls so.
    pub fn outside_of_diffusers(&self, name: &str) -> Option<&'static Outside> {
        self.outside.iter().find(|outside| outside.diffusers == name)
    }

    fn find_fused(&'static self, name: &str, dot: char) -> Option<Place> {
        let (stack, block, rest) = self.split(name, dot, |stack| stack.original)?;
        let linear = self.stacks[stack].linears.iter().position(|f| same(f.original, rest, dot))?;
        Some(self.place(stack, block, linear))
    }

    fn find_part(&'static self, name: &str, dot: char) -> Option<(Place, usize)> {
        let (stack, block, rest) = self.split(name, dot, |stack| stack.diffusers)?;
        self.stacks[stack].linears.iter().enumerate().find_map(|(linear, fused)| {
            let part = fused.parts.iter().position(|(name, _)| same(name, rest, dot))?;
            Some((self.place(stack, block, linear), part))
        })
    }

    /// `STACK.BLOCK.REST`, where a dot may be another character.
    fn split<'n>(
        &self,
        name: &'n str,
        dot: char,
        of: impl Fn(&Stack) -> &'static str,
    ) -> Option<(usize, usize, &'n str)> {
        self.stacks.iter().enumerate().find_map(|(number, stack)| {
            let stem = of(stack);
            let stem = if dot == '.' { Cow::Borrowed(stem) } else { Cow::Owned(stem.replace('.', "_")) };
            let (block, rest) = name.strip_prefix(&*stem)?.strip_prefix(dot)?.split_once(dot)?;
            Some((number, block_number(block)?, rest))
        })
    }
}

/// Is a name of the table this one, in which dots may be another character?
fn same(name: &str, other: &str, dot: char) -> bool {
    if dot == '.' { name == other } else { name.replace('.', "_") == other }
}

/// A linear of the original layout: which block, and which of its linears.
#[derive(Clone, Copy)]
pub struct Place {
    names: &'static Names,
    stack: usize,
    block: usize,
    linear: usize,
}

impl Place {
    /// Which of the network's [stacks](Names::stacks).
    pub fn stack(&self) -> usize {
        self.stack
    }

    /// Number of the block among its kind.
    pub fn block(&self) -> usize {
        self.block
    }

    /// The linear, as it is called within its block.
    pub fn fused(&self) -> &'static Fused {
        &self.names.stacks[self.stack].linears[self.linear]
    }

    /// The name in the original layout.
    pub fn original(&self) -> String {
        format!("{}.{}.{}", self.names.stacks[self.stack].original, self.block, self.fused().original)
    }

    /// The names in diffusers' layout, in the order of the rows.
    pub fn diffusers(&self) -> Vec<String> {
        let block = format!("{}.{}", self.names.stacks[self.stack].diffusers, self.block);
        self.fused().parts.iter().map(|(name, _)| format!("{block}.{name}")).collect()
    }

    /// Which of so many rows belong to which part; nothing if they cannot be shared out.
    pub fn rows(&self, rows: usize) -> Option<Vec<Range<usize>>> {
        let shares: usize = self.fused().parts.iter().map(|(_, share)| share).sum();
        let unit = rows.is_multiple_of(shares).then(|| rows / shares)?;
        let mut at = 0;
        let ranges = self.fused().parts.iter().map(|(_, share)| {
            let start = at;
            at += share * unit;
            start..at
        });
        Some(ranges.collect())
    }

    /// How many rows each part has, if one of them has so many; nothing if they cannot be that many.
    pub fn rows_beside(&self, part: usize, rows: usize) -> Option<Vec<usize>> {
        let (_, share) = self.fused().parts.get(part)?;
        let unit = rows.is_multiple_of(*share).then(|| rows / share)?;
        Some(self.fused().parts.iter().map(|(_, share)| share * unit).collect())
    }
}

impl Place {
    /// Of one network, places stand in the order of the model.
    fn key(&self) -> (&'static str, usize, usize, usize) {
        (self.names.network, self.stack, self.block, self.linear)
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Place {}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.original())
    }
}

/// The number of a block as layouts write it: digits without a leading zero.
pub fn block_number(text: &str) -> Option<usize> {
    let digits = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if digits { text.parse().ok() } else { None }
}
