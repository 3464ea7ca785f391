// The simulated device: a Verilated unit, its memory and the host's side of its registers.
//
// Python (sim/device.py) generates the top `device`: the unit with a register before each of its
// inputs, so that one evaluation a cycle is enough. In cycle n the unit sees the inputs that were
// set before clock edge n - 1, and its outputs can be read after that edge. Nothing here depends
// on what the unit does behind its ports; widths follow from the types of the ports.

#include <verilated.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "Vdevice.h"
#if VM_COVERAGE
#include <verilated_cov.h>
#endif
#if VM_TRACE_FST
#include <verilated_fst_c.h>
using Trace = VerilatedFstC;
#elif VM_TRACE
#include <verilated_vcd_c.h>
using Trace = VerilatedVcdC;
#endif

namespace {

constexpr uint64_t PAGE_BYTES = 4096;
constexpr unsigned MAX_BUS_BYTES = 64;
constexpr size_t MAX_BURSTS = 1024;  // of a channel, accepted and not answered
constexpr size_t MAX_IDS = 64;         // between which answers are shuffled
constexpr uint64_t SHUFFLE_CYCLES = 64;  // by which shuffled answers come later, at most
constexpr size_t MAX_VIOLATIONS = 1000;
constexpr unsigned LITE_TIMEOUT = 100000;  // cycles
constexpr uint8_t IDLE_DATA = 0xEE;        // data while no beat is offered, or that has no meaning
constexpr unsigned OKAY = 0, DECERR = 3, INCR = 1;

enum Channel { AR, R, AW, W, B, AXIL, N_CHANNELS };

class Random {  // xorshift64*, never 0
  public:
    explicit Random(uint64_t seed) : state{seed * 0x9E3779B97F4A7C15u + 0x2545F4914F6CDD1Du} {
        if (!state) state = 1;
        for (int i = 0; i < 8; ++i) next();
    }
    uint32_t next() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return static_cast<uint32_t>((state * 0x2545F4914F6CDD1Du) >> 32);
    }
    // True with the chance threshold / 2**32.
    bool chance(uint32_t threshold) { return threshold && next() < threshold; }
    size_t below(size_t limit) { return (uint64_t{next()} * limit) >> 32; }

  private:
    uint64_t state;
};

struct Timing {
    uint64_t latency = 0;
    uint64_t rate = 0;  // tokens a cycle; a byte is 2**16 tokens
    uint32_t stall[N_CHANNELS] = {};
    bool shuffle = false;
};

struct Injection {
    bool write;
    uint64_t first, end;
    unsigned response;
    uint64_t left;
};

struct Range {
    bool on = false;
    uint64_t first = 0, end = 0;
    bool holds(uint64_t address, uint64_t size) const {
        return !on || (address >= first && address <= end && size <= end - address);
    }
};

struct Totals {
    uint64_t read_bursts = 0, read_beats = 0, read_bytes = 0, max_read_bytes = 0;
    uint64_t write_bursts = 0, write_beats = 0, write_bytes = 0, responses = 0;
};

// What the ports of one device share.
struct World {
    uint8_t* memory;
    uint64_t memory_base, memory_bytes;
    Random random;
    Timing timing;
    uint64_t cycle = 0;
    std::vector<Injection> injections;
    Range allow_read, allow_write;
    std::vector<std::string> violations;
    uint64_t n_violations = 0;

    __attribute__((format(printf, 2, 3), cold, noinline)) void violation(const char* format, ...) {
        ++n_violations;
        if (violations.size() >= MAX_VIOLATIONS) return;
        char text[256];
        int size = snprintf(text, sizeof(text), "cycle %llu: ", (unsigned long long)cycle);
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text + size, sizeof(text) - size, format, arguments);
        va_end(arguments);
        violations.emplace_back(text);
    }
    bool outside(uint64_t address, uint64_t size) const {
        const uint64_t offset = address - memory_base;  // wraps below the base
        return offset >= memory_bytes || size > memory_bytes - offset;
    }
    uint8_t* at(uint64_t address) { return memory + (address - memory_base); }
    // Response for an access; counts injections that it meets.
    unsigned response(bool write, uint64_t address, uint64_t size) {
        if (outside(address, size)) return DECERR;
        for (auto& item : injections) {
            if (item.write != write || !item.left) continue;
            if (address < item.end && item.first < address + size) {
                if (item.left != UINT64_MAX) --item.left;
                return item.response;
            }
        }
        return OKAY;
    }
};

// Bytes that memory moves for one port; reads and writes share them.
class Bucket {
  public:
    explicit Bucket(unsigned bus_bytes) : beat{uint64_t{bus_bytes} << 16} {}
    // A full bucket does not fill, so that a pause saves one beat.
    void fill(uint64_t rate) {
        if (tokens < beat) tokens += rate;
    }
    bool has(unsigned beats = 1) const { return tokens >= beats * beat; }
    void take() { tokens -= beat; }

  private:
    uint64_t beat;
    uint64_t tokens = 0;
};

struct Request {
    uint64_t address, id;
    unsigned length, size, burst, rest;  // length: beats - 1; rest: cache and protection
    bool operator==(const Request&) const = default;
};

// AR or AW: holds until accepted, lies in one page, has the width of the bus.
class RequestCheck {
  public:
    RequestCheck(World& world, std::string name, unsigned bus_bytes)
        : world{world}, name{std::move(name)}, bus_bytes{bus_bytes} {}
    void reset() { held = false; }

    bool holds() const { return held; }

    // Returns whether a request shows for the first time.
    bool check(bool valid, bool ready, const Request& now, const Range& allowed) {
        const bool is_new = valid && !held;
        if (held) {
            if (!valid) world.violation("%s: valid dropped before it was accepted", text());
            else if (!(now == last)) world.violation("%s: changed before it was accepted", text());
        } else if (valid) {
            content(now, allowed);
        }
        held = valid && !ready;
        if (held) last = now;
        return is_new;
    }

  private:
    World& world;
    std::string name;
    unsigned bus_bytes;
    bool held = false;
    Request last{};

    const char* text() const { return name.c_str(); }

    void content(const Request& now, const Range& allowed) {
        const auto address = static_cast<unsigned long long>(now.address);
        const unsigned size = (now.length + 1) * bus_bytes;
        if (now.burst != INCR) {
            world.violation("%s %#llx: burst type %u is not INCR", text(), address, now.burst);
        }
        if (1u << now.size != bus_bytes) {
            world.violation("%s %#llx: size %u is not that of the bus", text(), address, now.size);
        }
        if (now.address % bus_bytes) {
            world.violation("%s %#llx: address is not aligned", text(), address);
        }
        if (now.address % PAGE_BYTES + size > PAGE_BYTES) {
            world.violation("%s %#llx: burst of %u bytes crosses 4 KiB", text(), address, size);
        }
        if (!allowed.holds(now.address, size)) {
            world.violation("%s %#llx: burst of %u bytes outside the allowed range", text(),
                            address, size);
        }
    }
};

// Cycle from which on a request of this cycle may be answered.
uint64_t due(World& world) {
    const uint64_t soonest = world.cycle + 1 + world.timing.latency;
    return world.timing.shuffle ? soonest + world.random.below(SHUFFLE_CYCLES) : soonest;
}

// Index of the burst to answer next: the first one, or with `shuffle` the first one of a random
// ID. A burst whose time has not come holds up those behind it; -1 when there is none.
template <class Bursts>
ptrdiff_t choose(const Bursts& bursts, World& world) {
    if (bursts.empty()) return -1;
    if (!world.timing.shuffle) return bursts.front().due <= world.cycle ? 0 : -1;
    uint64_t ids[MAX_IDS];
    size_t firsts[MAX_IDS];
    size_t n_ids = 0, n = 0;
    for (size_t i = 0; i < bursts.size() && n_ids < MAX_IDS; ++i) {
        if (std::find(ids, ids + n_ids, bursts[i].id) != ids + n_ids) continue;
        ids[n_ids++] = bursts[i].id;
        if (bursts[i].due <= world.cycle) firsts[n++] = i;
    }
    return n ? static_cast<ptrdiff_t>(firsts[world.random.below(n)]) : -1;
}

template <class Id, class Data>
struct ReadPins {
    CData &arvalid, &arready;
    QData& araddr;
    Id& arid;
    CData &arlen, &arsize, &arburst, &arcache, &arprot;
    CData &rvalid, &rready;
    Id& rid;
    Data& rdata;
    CData &rresp, &rlast;
};

// Memory's side of AR and R.
template <class Id, class Data>
class ReadPort {
  public:
    static constexpr unsigned BUS_BYTES = sizeof(Data);

    ReadPort(World& world, Bucket& bucket, ReadPins<Id, Data> pins, const std::string& name)
        : world{world},
          bucket{bucket},
          pins{pins},
          name{name},
          request{world, name + " AR", BUS_BYTES} {
        reset();
    }

    void reset() {
        bursts.clear();
        in_flight = 0;
        request.reset();
        pins.arready = pins.rvalid = 0;
        idle();
    }

    void check_reset() {
        if (pins.arvalid) world.violation("%s AR: valid in reset", name.c_str());
    }

    // Look at the cycle that ends.
    void sample(Totals& totals) {
        if (pins.arvalid || request.holds()) {
            const Request now{pins.araddr, pins.arid,    pins.arlen,
                              pins.arsize, pins.arburst, pins.arcache | pins.arprot << 4u};
            request.check(pins.arvalid, pins.arready, now, world.allow_read);
            if (pins.arvalid && pins.arready) {
                bursts.push_back({now.address, now.id, due(world), now.length + 1});
                ++totals.read_bursts;
                in_flight += uint64_t{now.length + 1} * BUS_BYTES;
                totals.max_read_bytes = std::max(totals.max_read_bytes, in_flight);
            }
        }
        if (pins.rvalid && pins.rready) {
            ++totals.read_beats;
            totals.read_bytes += BUS_BYTES;
            in_flight -= BUS_BYTES;
            pins.rvalid = 0;
        }
    }

    // A beat could be offered in the next cycle, if there are tokens.
    bool wants() const {
        return !pins.rvalid && !bursts.empty() &&
               (world.timing.shuffle || bursts.front().due <= world.cycle);
    }

    // Set the inputs of the next cycle; `world.cycle` is its number. Returns whether a beat is new.
    bool drive(bool may_offer) {
        const auto& stall = world.timing.stall;
        pins.arready = bursts.size() < MAX_BURSTS && !world.random.chance(stall[AR]);
        if (pins.rvalid) return false;
        if (may_offer && bucket.has() && !world.random.chance(stall[R])) {
            const ptrdiff_t index = choose(bursts, world);
            if (index >= 0) {
                offer(index);
                return true;
            }
        }
        idle();
        return false;
    }

  private:
    struct Burst {
        uint64_t address, id, due;
        unsigned left;
    };

    World& world;
    Bucket& bucket;
    ReadPins<Id, Data> pins;
    std::string name;
    RequestCheck request;
    std::deque<Burst> bursts;
    uint64_t in_flight = 0;
    bool is_idle = false;

    void offer(ptrdiff_t index) {
        Burst& burst = bursts[index];
        bucket.take();
        is_idle = false;
        const unsigned response = world.response(false, burst.address, BUS_BYTES);
        pins.rvalid = 1;
        pins.rid = static_cast<Id>(burst.id);
        pins.rresp = response;
        pins.rlast = burst.left == 1;
        if (response == OKAY) memcpy(&pins.rdata, world.at(burst.address), BUS_BYTES);
        else memset(&pins.rdata, IDLE_DATA, BUS_BYTES);
        burst.address += BUS_BYTES;
        if (!--burst.left) bursts.erase(bursts.begin() + index);
    }

    void idle() {
        if (is_idle) return;
        is_idle = true;
        memset(&pins.rdata, IDLE_DATA, BUS_BYTES);
    }
};

template <class Id, class Data, class Strobe>
struct WritePins {
    CData &awvalid, &awready;
    QData& awaddr;
    Id& awid;
    CData &awlen, &awsize, &awburst, &awcache, &awprot;
    CData &wvalid, &wready;
    Data& wdata;
    Strobe& wstrb;
    CData& wlast;
    CData &bvalid, &bready;
    Id& bid;
    CData& bresp;
};

// Memory's side of AW, W and B. What a burst writes is seen in memory from its response on.
template <class Id, class Data, class Strobe>
class WritePort {
  public:
    static constexpr unsigned BUS_BYTES = sizeof(Data);

    WritePort(World& world, Bucket& bucket, WritePins<Id, Data, Strobe> pins,
              const std::string& name)
        : world{world},
          bucket{bucket},
          pins{pins},
          name{name},
          request{world, name + " AW", BUS_BYTES} {
        reset();
    }

    void reset() {
        waiting.clear();
        complete.clear();
        beats.clear();
        announced = received = 0;
        held = false;
        request.reset();
        pins.awready = pins.wready = pins.bvalid = 0;
    }

    void check_reset() {
        if (pins.awvalid) world.violation("%s AW: valid in reset", name.c_str());
        if (pins.wvalid) world.violation("%s W: valid in reset", name.c_str());
    }

    // Returns whether a beat was taken.
    bool sample(Totals& totals) {
        const uint64_t before = received;
        if (pins.awvalid || request.holds()) {
            const Request now{pins.awaddr, pins.awid,    pins.awlen,
                              pins.awsize, pins.awburst, pins.awcache | pins.awprot << 4u};
            const bool is_new = request.check(pins.awvalid, pins.awready, now, world.allow_write);
            if (is_new) announced += now.length + 1;
            if (pins.awvalid && pins.awready) {
                waiting.push_back({now.address, now.id, 0, now.length + 1, {}});
                ++totals.write_bursts;
            }
        }
        if (pins.wvalid || held) sample_data(totals);
        while (!beats.empty() && !waiting.empty()) collect();
        if (pins.bvalid && pins.bready) {
            pins.bvalid = 0;
            ++totals.responses;
        }
        return received != before;
    }

    // A beat waits, so that tokens taken for W would be used.
    bool wants() const { return held; }

    void drive() {
        const auto& stall = world.timing.stall;
        pins.awready = waiting.size() + complete.size() < MAX_BURSTS &&
                       !world.random.chance(stall[AW]);
        pins.wready =
            bucket.has() && beats.size() < MAX_BURSTS && !world.random.chance(stall[W]);
        if (pins.bvalid || complete.empty() || world.random.chance(stall[B])) return;
        const ptrdiff_t index = choose(complete, world);
        if (index >= 0) answer(index);
    }

  private:
    struct Beat {
        uint8_t data[BUS_BYTES];
        uint64_t strobe;
        bool last;
        bool operator==(const Beat& other) const {
            return strobe == other.strobe && last == other.last &&
                   !memcmp(data, other.data, BUS_BYTES);
        }
    };
    struct Burst {
        uint64_t address, id, due;
        unsigned n_beats;
        std::vector<Beat> beats;
    };

    World& world;
    Bucket& bucket;
    WritePins<Id, Data, Strobe> pins;
    std::string name;
    RequestCheck request;
    std::deque<Burst> waiting, complete;
    std::deque<Beat> beats;  // taken, burst not accepted yet
    uint64_t announced = 0, received = 0;  // beats of bursts that AW has shown; beats taken
    bool held = false;
    Beat last{};

    void sample_data(Totals& totals) {
        Beat now;
        memcpy(now.data, &pins.wdata, BUS_BYTES);
        now.strobe = pins.wstrb;
        now.last = pins.wlast;
        if (held) {
            if (!pins.wvalid) {
                world.violation("%s W: valid dropped before it was taken", name.c_str());
            } else if (!(now == last)) {
                world.violation("%s W: changed before it was taken", name.c_str());
            }
        }
        held = pins.wvalid && !pins.wready;
        if (held) last = now;
        if (!pins.wvalid || held) return;
        bucket.take();
        beats.push_back(now);
        ++totals.write_beats;
        totals.write_bytes += __builtin_popcountll(now.strobe);
        if (++received > announced) {
            world.violation("%s W: beat without a burst on AW", name.c_str());
        }
    }

    void collect() {
        Burst& burst = waiting.front();
        burst.beats.push_back(beats.front());
        beats.pop_front();
        const bool ends = burst.beats.size() == burst.n_beats;
        if (burst.beats.back().last != ends) {
            world.violation("%s W: last is %d on beat %zu of %u, burst %#llx", name.c_str(), !ends,
                            burst.beats.size(), burst.n_beats, (unsigned long long)burst.address);
        }
        if (!ends) return;
        burst.due = due(world);
        complete.push_back(std::move(burst));
        waiting.pop_front();
    }

    void answer(ptrdiff_t index) {
        const Burst& burst = complete[index];
        const unsigned response = world.response(true, burst.address, burst.n_beats * BUS_BYTES);
        pins.bvalid = 1;
        pins.bid = static_cast<Id>(burst.id);
        pins.bresp = response;
        if (response == OKAY) {
            uint8_t* to = world.at(burst.address);
            for (const Beat& beat : burst.beats) {
                if (beat.strobe == UINT64_MAX >> (64 - BUS_BYTES)) {
                    memcpy(to, beat.data, BUS_BYTES);
                } else {
                    for (unsigned i = 0; i < BUS_BYTES; ++i) {
                        if (beat.strobe >> i & 1) to[i] = beat.data[i];
                    }
                }
                to += BUS_BYTES;
            }
        }
        complete.erase(complete.begin() + index);
    }
};

// Checks the unit's answers on AXI4-Lite.
template <class Top>
class LiteCheck {
  public:
    LiteCheck(World& world, Top& top) : world{world}, top{top} {}
    void reset() {
        b_held = r_held = false;
        writes = data = reads = 0;
    }
    void check_reset() {
        if (top.s_axil_bvalid) world.violation("s_axil B: valid in reset");
        if (top.s_axil_rvalid) world.violation("s_axil R: valid in reset");
    }
    void sample() {
        if (top.s_axil_bvalid | b_held) {
            if (b_held && !top.s_axil_bvalid) {
                world.violation("s_axil B: valid dropped before it was taken");
            } else if (b_held && top.s_axil_bresp != bresp) {
                world.violation("s_axil B: changed before it was taken");
            } else if (!b_held && !std::min(writes, data)) {
                world.violation("s_axil B: response without a write");
            }
            b_held = top.s_axil_bvalid && !top.s_axil_bready;
            bresp = top.s_axil_bresp;
            if (top.s_axil_bvalid && !b_held && std::min(writes, data)) --writes, --data;
        }
        if (top.s_axil_rvalid | r_held) {
            if (r_held && !top.s_axil_rvalid) {
                world.violation("s_axil R: valid dropped before it was taken");
            } else if (r_held && (top.s_axil_rresp != rresp || top.s_axil_rdata != rdata)) {
                world.violation("s_axil R: changed before it was taken");
            } else if (!r_held && !reads) {
                world.violation("s_axil R: response without a read");
            }
            r_held = top.s_axil_rvalid && !top.s_axil_rready;
            rresp = top.s_axil_rresp;
            rdata = top.s_axil_rdata;
            if (top.s_axil_rvalid && !r_held && reads) --reads;
        }
        writes += top.s_axil_awvalid && top.s_axil_awready;
        data += top.s_axil_wvalid && top.s_axil_wready;
        reads += top.s_axil_arvalid && top.s_axil_arready;
    }

  private:
    World& world;
    Top& top;
    bool b_held = false, r_held = false;
    unsigned bresp = 0, rresp = 0;
    uint32_t rdata = 0;
    unsigned writes = 0, data = 0, reads = 0;  // accepted, not answered
};

#define READ_PINS(top, p)                                                                      \
    ReadPins {                                                                                 \
        (top).p##_arvalid, (top).p##_arready, (top).p##_araddr, (top).p##_arid,                \
            (top).p##_arlen, (top).p##_arsize, (top).p##_arburst, (top).p##_arcache,           \
            (top).p##_arprot, (top).p##_rvalid, (top).p##_rready, (top).p##_rid,               \
            (top).p##_rdata, (top).p##_rresp, (top).p##_rlast                                  \
    }
#define WRITE_PINS(top, p)                                                                     \
    WritePins {                                                                                \
        (top).p##_awvalid, (top).p##_awready, (top).p##_awaddr, (top).p##_awid,                \
            (top).p##_awlen, (top).p##_awsize, (top).p##_awburst, (top).p##_awcache,           \
            (top).p##_awprot, (top).p##_wvalid, (top).p##_wready, (top).p##_wdata,             \
            (top).p##_wstrb, (top).p##_wlast, (top).p##_bvalid, (top).p##_bready,              \
            (top).p##_bid, (top).p##_bresp                                                     \
    }

struct NoPort {
    static constexpr unsigned BUS_BYTES = 8;
    void reset() {}
    void check_reset() {}
    void sample(Totals&) {}
    bool drive(bool) { return false; }
};

template <class Top>
auto values_port(World& world, Bucket& bucket, Top& top) {
    if constexpr (requires { top.m_axi_v_arvalid; }) {
        return ReadPort{world, bucket, READ_PINS(top, m_axi_v), "m_axi_v"};
    } else {
        return NoPort{};
    }
}

template <class Top>
class Device {
    static auto read_port(World& world, Bucket& bucket, Top& top) {
        return ReadPort{world, bucket, READ_PINS(top, m_axi), "m_axi"};
    }
    static auto write_port(World& world, Bucket& bucket, Top& top) {
        return WritePort{world, bucket, WRITE_PINS(top, m_axi), "m_axi"};
    }
    template <auto make>
    using Made = std::invoke_result_t<decltype(make), World&, Bucket&, Top&>;
    using Read = Made<&read_port>;
    using Write = Made<&write_port>;
    using Values = Made<&values_port<Top>>;

  public:
    static constexpr bool HAS_VALUES = !std::is_same_v<Values, NoPort>;
    static constexpr unsigned BUS_BYTES = Read::BUS_BYTES;
    static_assert(BUS_BYTES <= MAX_BUS_BYTES && Values::BUS_BYTES <= MAX_BUS_BYTES);

    World world;
    Totals totals[2];

    Device(uint8_t* memory, uint64_t memory_base, uint64_t memory_bytes, uint64_t seed,
           const char* trace_path)
        : world{memory, memory_base, memory_bytes, Random{seed}},
          top{&context, "TOP"},
          bucket{BUS_BYTES},
          values_bucket{Values::BUS_BYTES},
          read{read_port(world, bucket, top)},
          write{write_port(world, bucket, top)},
          values{values_port(world, values_bucket, top)},
          lite{world, top} {
#if VM_TRACE
        if (trace_path) {
            context.traceEverOn(true);
            trace = std::make_unique<Trace>();
            top.trace(trace.get(), 99);
            trace->open(trace_path);
            tracing = true;
        }
#else
        (void)trace_path;
#endif
        top.aclk = 0;
        top.aresetn = 0;
        top.eval();
    }

    ~Device() {
#if VM_TRACE
        if (trace) trace->close();
#endif
        top.final();
    }

    bool interrupt() const { return top.irq; }

    void reset(uint64_t cycles) {
        read.reset();
        write.reset();
        values.reset();
        lite.reset();
        top.s_axil_awvalid = top.s_axil_wvalid = top.s_axil_arvalid = 0;
        top.s_axil_bready = top.s_axil_rready = 0;
        top.aresetn = 0;
        for (uint64_t i = 0; i <= cycles; ++i) {
            top.aresetn = i == cycles;
            ++world.cycle;
            clock();
            if (!i) continue;  // the unit has not seen a clock edge in reset
            read.check_reset();
            write.check_reset();
            values.check_reset();
            lite.check_reset();
        }
    }

    uint64_t run(uint64_t max_cycles, bool until_interrupt) {
        uint64_t n = 0;
        while (n < max_cycles && !(until_interrupt && interrupt())) {
            sample();
            advance();
            ++n;
        }
        return n;
    }

    // One transaction on AXI4-Lite: the response, or -1 when there is none.
    int access(bool is_write, uint32_t offset, uint32_t* value) {
        const uint32_t stall = world.timing.stall[AXIL];
        CData& valid = is_write ? top.s_axil_awvalid : top.s_axil_arvalid;
        const CData& accepted = is_write ? top.s_axil_awready : top.s_axil_arready;
        const CData& answer = is_write ? top.s_axil_bvalid : top.s_axil_rvalid;
        CData& ready = is_write ? top.s_axil_bready : top.s_axil_rready;
        bool address_left = true, data_left = is_write;
        int response = -1;
        for (unsigned i = 0; i < LITE_TIMEOUT && response < 0; ++i) {
            const bool address_sent = valid && accepted;
            const bool data_sent = top.s_axil_wvalid && top.s_axil_wready;
            if (answer && ready) {
                response = is_write ? top.s_axil_bresp : top.s_axil_rresp;
                if (!is_write) *value = top.s_axil_rdata;
            }
            sample();
            if (address_sent) address_left = false, valid = 0;
            if (data_sent) data_left = false, top.s_axil_wvalid = 0;
            if (address_left && !valid && !world.random.chance(stall)) {
                valid = 1;
                (is_write ? top.s_axil_awaddr : top.s_axil_araddr) = offset;
            }
            if (data_left && !top.s_axil_wvalid && !world.random.chance(stall)) {
                top.s_axil_wvalid = 1;
                top.s_axil_wdata = *value;
                top.s_axil_wstrb = 0xF;
            }
            ready = response < 0 && !world.random.chance(stall);
            if (response >= 0) valid = top.s_axil_wvalid = 0;
            advance();
        }
        valid = top.s_axil_wvalid = ready = 0;
        return response;
    }

    bool write_coverage([[maybe_unused]] const char* path) {
#if VM_COVERAGE
        context.coveragep()->write(path);
#endif
        return VM_COVERAGE;
    }

    // In a unit with mutants (sim/schemata.py): which one is at work from the next cycle on.
    bool set_mutant(unsigned number) { return set_mutant_of(top, number); }

    void set_tracing([[maybe_unused]] bool on) {
#if VM_TRACE
        tracing = on && trace;
#endif
    }

  private:
    VerilatedContext context;
    Top top;
    Bucket bucket, values_bucket;
    Read read;
    Write write;
    Values values;
    LiteCheck<Top> lite;
    bool write_turn = false;
#if VM_TRACE
    std::unique_ptr<Trace> trace;
    bool tracing = false;
#endif

    template <class T>
    static bool set_mutant_of(T& top, [[maybe_unused]] unsigned number) {
        if constexpr (requires { top.mutant; }) {
            top.mutant = number;
            return true;
        }
        return false;
    }

    // Look at the outputs of the current cycle, with the inputs that the unit sees in it.
    void sample() {
        read.sample(totals[0]);
        if (write.sample(totals[0])) write_turn = false;
        values.sample(totals[1]);
        lite.sample();
    }

    // Set the inputs of the next cycle and go there.
    void advance() {
        ++world.cycle;
        bucket.fill(world.timing.rate);
        // When reads and writes both wait for tokens, they get them in turn.
        const bool both = read.wants() && write.wants();
        const bool offered = read.drive(!both || !write_turn || bucket.has(2));
        write.drive();
        if (both && offered) write_turn = true;
        if constexpr (HAS_VALUES) {
            values_bucket.fill(world.timing.rate);
            values.drive(true);
        }
        clock();
    }

    void clock() {
        top.aclk = 1;
        top.eval();
#if VM_TRACE
        if (tracing) trace->dump(2 * world.cycle);
#endif
        top.aclk = 0;
        top.eval();
#if VM_TRACE
        if (tracing) trace->dump(2 * world.cycle + 1);
#endif
    }
};

using Unit = Device<Vdevice>;

Unit* unit(void* device) { return static_cast<Unit*>(device); }

}  // namespace

// The functions that sim/device.py calls.
extern "C" {

void* device_create(uint8_t* memory, uint64_t memory_base, uint64_t memory_bytes, uint64_t seed,
                    const char* trace) {
    return new Unit{memory, memory_base, memory_bytes, seed, trace};
}
void device_destroy(void* device) { delete unit(device); }
unsigned device_bus_bytes() { return Unit::BUS_BYTES; }
int device_has_values() { return Unit::HAS_VALUES; }
void device_reset(void* device, uint64_t cycles) { unit(device)->reset(cycles); }
uint64_t device_run(void* device, uint64_t max_cycles, int until_interrupt) {
    return unit(device)->run(max_cycles, until_interrupt);
}
int device_access(void* device, int is_write, uint32_t offset, uint32_t* value) {
    return unit(device)->access(is_write, offset, value);
}
uint64_t device_cycle(void* device) { return unit(device)->world.cycle; }
int device_interrupt(void* device) { return unit(device)->interrupt(); }
void device_trace(void* device, int on) { unit(device)->set_tracing(on); }
int device_write_coverage(void* device, const char* path) {
    return unit(device)->write_coverage(path);
}
int device_set_mutant(void* device, unsigned number) { return unit(device)->set_mutant(number); }

void device_timing(void* device, uint64_t latency, uint64_t rate, const uint32_t* stall,
                   int shuffle) {
    Timing& timing = unit(device)->world.timing;
    timing.latency = latency;
    timing.rate = rate;
    std::copy(stall, stall + N_CHANNELS, timing.stall);
    timing.shuffle = shuffle;
}

void device_inject(void* device, int write, uint64_t first, uint64_t end, unsigned response,
                   uint64_t count) {
    unit(device)->world.injections.push_back({write != 0, first, end, response, count});
}
void device_clear_injections(void* device) { unit(device)->world.injections.clear(); }

void device_allow(void* device, int write, int on, uint64_t first, uint64_t end) {
    World& world = unit(device)->world;
    (write ? world.allow_write : world.allow_read) = {on != 0, first, end};
}

uint64_t device_n_violations(void* device) { return unit(device)->world.n_violations; }
const char* device_violation(void* device, uint64_t index) {
    const auto& violations = unit(device)->world.violations;
    return index < violations.size() ? violations[index].c_str() : nullptr;
}

void device_totals(void* device, int port, Totals* totals) { *totals = unit(device)->totals[port]; }
void device_clear_totals(void* device) {
    for (Totals& totals : unit(device)->totals) totals = {};
}

}  // extern "C"
