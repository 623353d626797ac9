//! What something costs by a list of prices: exact, and rounded once.

use onlyonce_core::metered::{decimal, rounded};
use onlyonce_core::{Unit, Usage, Usd};

use super::charge::{COUNT, Charge, Charges, Gap, each};

/// A price in 10⁻¹⁸ dollars for [`Charge::per`] units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) base: i128,
    /// By `above`, the lowest first.
    pub(super) tiers: Box<[Tier]>,
}

/// Another price where the request was longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tier {
    /// It holds for more input tokens than these.
    pub(super) above: u64,
    pub(super) price: i128,
}

impl Rate {
    /// The price that is the same for all.
    pub(super) fn flat(price: i128) -> Self {
        Self {
            base: price,
            tiers: Box::default(),
        }
    }

    /// Reads a price in dollars; `None` where it is none.
    pub(super) fn price(text: &str) -> Option<i128> {
        decimal(text, 18).filter(|price| *price >= 0)
    }

    fn with_input(&self, input: u64) -> i128 {
        let tier = self.tiers.iter().rev().find(|tier| input > tier.above);
        tier.map_or(self.base, |tier| tier.price)
    }
}

/// Prices of several charges, each named once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PriceList(pub(super) Box<[(Charge, Rate)]>);

impl PriceList {
    /// What has a price.
    pub(super) fn charges(&self) -> Charges {
        self.0.iter().fold(0, |set, (charge, _)| set | charge.bit())
    }
}

/// The prices that hold for one call.
pub(super) struct Offer<'a> {
    rates: [Option<&'a Rate>; COUNT],
    priced: Charges,
}

impl<'a> Offer<'a> {
    /// The prices of a list.
    pub(super) fn of(list: &'a PriceList) -> Self {
        let mut offer = Self {
            rates: [None; COUNT],
            priced: 0,
        };
        offer.put(list);
        offer
    }

    /// Puts the prices of `list` in the place of those that were there.
    pub(super) fn put(&mut self, list: &'a PriceList) {
        for (charge, rate) in &list.0 {
            self.rates[charge.index()] = Some(rate);
            self.priced |= charge.bit();
        }
    }

    /// Whether costs can be told from them.
    pub(super) fn is_whole(&self) -> bool {
        Gap::find(self.priced).is_none()
    }

    /// What `usage` comes to. `None` where nothing of it has a price, where it contradicts itself (more
    /// tokens from the cache than tokens), or where a count is missing that its parts show not to be 0.
    pub(super) fn total(&self, usage: &Usage) -> Option<Exact> {
        let counts = Counts::of(usage);
        let calls = self.priced & Charge::CALL.bit();
        if usage.is_empty() || self.priced == 0 || (calls == 0 && self.leaves_out(counts.used)) {
            return None;
        }
        let tiered = each(self.priced).any(|charge| !self.rate(charge).tiers.is_empty());
        let input = match tiered {
            true => counts.get(Charge::INPUT)?,
            false => 0,
        };
        let mut total: i128 = 0;
        // What of each is no part of another that has a price of its own.
        let mut rests = [0_u64; COUNT];
        for charge in each(self.priced & !calls) {
            let mut rest = counts.get(charge)?;
            for part in each(charge.parts() & self.priced) {
                rest = rest.checked_sub(rests[part.index()])?;
            }
            rests[charge.index()] = rest;
            let price = self.rate(charge).with_input(input);
            total = total.checked_add(amount(charge, price, rest)?)?;
        }
        if calls != 0 {
            let price = self.rate(Charge::CALL).with_input(input);
            let times = usage.get(Unit::Requests).unwrap_or(1);
            total = total.checked_add(amount(Charge::CALL, price, times)?)?;
        }
        Some(Exact(total))
    }

    /// Whether something was used and nothing of it has a price.
    fn leaves_out(&self, used: Charges) -> bool {
        used != 0 && each(used).all(|charge| (charge.bit() | charge.wholes()) & self.priced == 0)
    }

    fn rate(&self, charge: Charge) -> &'a Rate {
        self.rates[charge.index()].expect("only asked for what is in `priced`")
    }
}

/// `count` times `price`, in 10⁻²⁴ dollars.
fn amount(charge: Charge, price: i128, count: u64) -> Option<i128> {
    if count == 0 {
        return Some(0);
    }
    // Hours of audio and pixels do not divide it; they are never counted.
    let scale = 1_000_000 / i128::from(charge.per());
    price.checked_mul(i128::from(count))?.checked_mul(scale)
}

/// What was told, by charge. Calls are no part of it.
struct Counts {
    of: [u64; COUNT],
    told: Charges,
    used: Charges,
}

impl Counts {
    fn of(usage: &Usage) -> Self {
        let mut counts = Self {
            of: [0; COUNT],
            told: 0,
            used: 0,
        };
        for (unit, count) in usage.iter().filter(|(unit, _)| *unit != Unit::Requests) {
            let charge = Charge::of(unit);
            counts.of[charge.index()] = count;
            counts.told |= charge.bit();
            if count > 0 {
                counts.used |= charge.bit();
            }
        }
        counts
    }

    /// How much of it; 0 where nobody told. `None` where what was told shows that it cannot be 0: a part
    /// of it is not, or two are not whose overlap it is.
    fn get(&self, charge: Charge) -> Option<u64> {
        if self.told & charge.bit() != 0 || self.used == 0 {
            return Some(self.of[charge.index()]);
        }
        if self.used & charge.parts() != 0 {
            return None;
        }
        let wholes = self.used & charge.wholes();
        if wholes.count_ones() < 2 {
            return Some(0);
        }
        let overlaps = each(wholes).any(|a| {
            each(wholes)
                .filter(|b| *b > a)
                .any(|b| charge.is_overlap(a, b))
        });
        (!overlaps).then_some(0)
    }
}

/// An amount that is not rounded yet, in 10⁻²⁴ dollars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exact(i128);

impl Exact {
    const PER_NANO: i128 = 1_000_000_000_000_000;

    /// To the nearest nano; `None` where it does not fit.
    pub(super) fn rounded(self) -> Option<Usd> {
        self.rounded_times(1, 1)
    }

    /// So many times as much, to the nearest nano; `None` where it does not fit.
    pub(super) fn rounded_times(self, times: i128, divisor: i128) -> Option<Usd> {
        let nanos = rounded(self.0.checked_mul(times)?, divisor * Self::PER_NANO);
        Some(Usd::from_nanos(i64::try_from(nanos).ok()?))
    }
}
