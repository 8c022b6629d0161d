//! NUMA nodes and lists of CPUs: the text of `numactl -H`, and the kernel's own lists. Pure: who calls it reads the files.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::plan::mistake::{Fault, Mistake};

/// More CPUs or nodes than any host has; a list past it is a mistake and not a reason to fill memory.
const MOST: u32 = 65_536;

/// A set of CPUs or of nodes, ascending, as in `0-15,32-47`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Set(Vec<u32>);

impl Set {
    /// The set of these numbers.
    #[must_use]
    pub fn of(numbers: impl IntoIterator<Item = u32>) -> Set {
        let mut numbers: Vec<u32> = numbers.into_iter().collect();
        numbers.sort_unstable();
        numbers.dedup();
        Set(numbers)
    }

    /// Reads `0-15,32-47`.
    ///
    /// # Errors
    /// The text is no such list, or a number in it is past any host.
    pub fn parse(text: &str) -> Result<Set, Fault> {
        let wrong = || Fault::BadList(text.to_owned());
        let number = |part: &str| part.parse::<u32>().ok().filter(|&number| number < MOST).ok_or_else(wrong);
        let mut numbers = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first.trim())?, number(last.trim())?);
            if first > last {
                return Err(wrong());
            }
            numbers.extend(first..=last);
        }
        Ok(Set::of(numbers))
    }

    /// The numbers, ascending.
    #[must_use]
    pub fn numbers(&self) -> &[u32] {
        &self.0
    }

    /// Returns whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_slice();
        let mut between = "";
        while let [first, ..] = rest {
            let run = rest.iter().zip(*first..).take_while(|(have, want)| **have == *want).count();
            let last = rest[run - 1];
            if run == 1 {
                write!(f, "{between}{first}")?
            } else {
                write!(f, "{between}{first}-{last}")?
            }
            (rest, between) = (&rest[run..], ",");
        }
        Ok(())
    }
}

impl Serialize for Set {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its number.
    pub id: u32,
    /// Its CPUs; none for a node that is memory alone.
    pub cpus: Set,
}

/// Reads the output of `numactl -H`.
///
/// # Errors
/// It has no line of a node's CPUs, or one that is no list of numbers.
pub fn parse_numactl(text: &str) -> Result<Vec<Node>, Mistake> {
    let mut nodes: Vec<Node> = Vec::new();
    for (line, content) in (1..).zip(text.lines()) {
        let Some((head, cpus)) = content.split_once(" cpus:") else { continue };
        let Some(id) = head.trim().strip_prefix("node ") else { continue };
        let bad = |text: &str| Fault::BadList(text.trim().to_owned()).at(line);
        let id = id.trim().parse().map_err(|_| bad(id))?;
        let list = cpus.split_whitespace().collect::<Vec<_>>().join(",");
        let cpus = if list.is_empty() { Set::default() } else { Set::parse(&list).map_err(|fault| fault.at(line))? };
        nodes.push(Node { id, cpus });
    }
    if nodes.is_empty() { Err(Fault::NoNode.whole()) } else { Ok(nodes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cpus_is_read_and_written_alike() {
        for text in ["0-15,32-47", "3", "0,2,4", "0-1"] {
            assert_eq!(Set::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Set::parse("2,0-1").unwrap().to_string(), "0-2");
    }

    #[test]
    fn what_is_no_list_is_named() {
        for text in ["", "a", "1-", "5-2", "0-4000000000", "-"] {
            assert_eq!(Set::parse(text), Err(Fault::BadList(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn numactl_lists_nodes_and_their_cpus() {
        let text = "available: 3 nodes (0-2)\nnode 0 cpus: 0 1 2 3\nnode 0 size: 64 MB\nnode 1 cpus: 4 5 6 7\nnode 2 cpus:\n\
            node distances:\nnode   0   1 \n  0:  10  21 \n";
        let nodes = parse_numactl(text).unwrap();
        let shown: Vec<String> = nodes.iter().map(|node| format!("{} {}", node.id, node.cpus)).collect();
        assert_eq!(shown, ["0 0-3", "1 4-7", "2 "]);
    }

    #[test]
    fn a_node_without_a_number_is_a_mistake_with_its_line() {
        assert_eq!(parse_numactl("x\nnode a cpus: 0\n").unwrap_err().line, Some(2));
        assert_eq!(parse_numactl("No NUMA available on this system").unwrap_err().fault, Fault::NoNode);
    }
}
