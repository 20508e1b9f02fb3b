//! What the kernel says about processes (Linux's /proc), and waiting until something is so.
#![allow(dead_code)] // a toolbox: not every tool is in use at every time

use std::fs;
use std::time::{Duration, Instant};

/// The state letter and the parent of a process, from /proc/PID/stat. The name may hold blanks and
/// parentheses, so the fields are counted from the last closing one.
fn state_and_parent(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat).into_owned();
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// A process that exists and is no zombie.
pub fn is_alive(pid: i32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

pub fn is_zombie(pid: i32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state == 'Z')
}

pub fn parent_of(pid: i32) -> Option<i32> {
    state_and_parent(pid).map(|(_, parent)| parent)
}

/// Every pid in /proc.
pub fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The direct children, zombies included.
pub fn children_of(pid: i32) -> Vec<i32> {
    all().into_iter().filter(|&child| parent_of(child) == Some(pid)).collect()
}

/// The process and all its descendants, parents first, zombies included.
pub fn tree_of(pid: i32) -> Vec<i32> {
    let pairs: Vec<(i32, i32)> = all().into_iter().filter_map(|child| Some((child, parent_of(child)?))).collect();
    let mut tree = vec![pid];
    let mut next = 0;
    while next < tree.len() {
        let parent = tree[next];
        tree.extend(pairs.iter().filter(|pair| pair.1 == parent).map(|pair| pair.0));
        next += 1;
    }
    tree
}

/// The living processes whose environment (as it was at their exec) holds `entry`, a `NAME=value`.
pub fn with_environment(entry: &str) -> Vec<i32> {
    let holds = |pid: &i32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|bytes| bytes.split(|&byte| byte == 0).any(|text| text == entry.as_bytes()))
    };
    all().into_iter().filter(holds).filter(|&pid| is_alive(pid)).collect()
}

fn status_field(pid: i32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
}

/// Resident memory now, in KiB.
pub fn rss_kb(pid: i32) -> u64 {
    status_field(pid, "VmRSS").unwrap_or_else(|| panic!("no VmRSS for process {pid}"))
}

/// The most resident memory that the process ever had, in KiB.
pub fn peak_rss_kb(pid: i32) -> u64 {
    status_field(pid, "VmHWM").unwrap_or_else(|| panic!("no VmHWM for process {pid}"))
}

pub fn thread_count(pid: i32) -> u64 {
    status_field(pid, "Threads").unwrap_or_else(|| panic!("no Threads for process {pid}"))
}

pub fn fd_count(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap_or_else(|error| panic!("descriptors of process {pid}: {error}"))
        .count()
}

/// The base name under which the kernel knows the process (at most 15 bytes).
pub fn name_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_string()
}

/// Sends a signal to one process (pid > 0) or to a group (pid < -1). False where nobody was there.
#[allow(unsafe_code)]
pub fn kill(pid: i32, signal: i32) -> bool {
    assert!(!(-1..=1).contains(&pid), "no signals to pid {pid}");
    // SAFETY: kill(2) takes two integers and touches no memory of ours.
    unsafe { libc::kill(pid, signal) == 0 }
}

/// Has what is started from now on get the default SIGINT and SIGHUP, also where the tests themselves ignore them, as
/// under nohup or in the background of a script: exec(3) leaves an ignored signal ignored, but resets a caught one.
#[allow(unsafe_code)]
pub fn default_signals() {
    extern "C" fn nothing(_: libc::c_int) {}
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        for signal in [libc::SIGINT, libc::SIGHUP] {
            // SAFETY: the handler does nothing; what was there before is put back.
            unsafe {
                let before = libc::signal(signal, nothing as *const () as usize);
                if before != libc::SIG_IGN {
                    libc::signal(signal, before);
                }
            }
        }
    });
}

/// Polls until the condition holds; panics with `what` where it does not within the deadline.
#[track_caller]
pub fn eventually(deadline: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
