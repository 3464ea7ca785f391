// Smoke test of configuration `@name@`: registers, then one routed job on a memory of its own,
// whose results must be those of the golden model, bit for bit. Ends with "smoke test passed", or
// with $fatal. It needs smoke_memory.hex and smoke_results.hex in the folder it runs in.

module smoke_tb;
  localparam integer BUS_BYTES = @bus_bytes@;
  localparam integer MEMORY_WORDS = @memory_words@;
  localparam integer RESULT_WORDS = @result_words@;
  localparam integer RESULTS = @results_at@;  // byte address
  localparam integer RING = @ring@;
  localparam integer COMPLETIONS = @completions@;
  localparam [31:0] TAG = @tag@;
  localparam integer MAX_CYCLES = @max_cycles@;

  reg aclk = 0;
  reg aresetn = 0;
  wire interrupt;

  // Signals ------------------------------------------------------------------------------------

@wires@
@unit@
  always #5 aclk = ~aclk;

  // Memory -------------------------------------------------------------------------------------

  reg [8*BUS_BYTES-1:0] memory [0:MEMORY_WORDS-1];
  reg [8*BUS_BYTES-1:0] expected [0:RESULT_WORDS-1];

@read_ports@
  wire write_ready;
  wire write_last;
  wire [31:0] write_index;
  assign m_axi_awready = write_ready && !m_axi_bvalid;
  assign m_axi_bresp = 0;

  smoke_burst #(
    .BUS_BYTES (BUS_BYTES),
    .MEMORY_WORDS (MEMORY_WORDS),
    .ID_WIDTH (@write_id_width@)
  ) writes (
    .clk (aclk),
    .reset_n (aresetn),
    .id (m_axi_awid),
    .address (m_axi_awaddr),
    .length (m_axi_awlen),
    .size (m_axi_awsize),
    .kind (m_axi_awburst),
    .valid (m_axi_awvalid && !m_axi_bvalid),
    .ready (write_ready),
    .beat_id (m_axi_bid),
    .beat_index (write_index),
    .beat_last (write_last),
    .beat_valid (m_axi_wready),
    .beat_ready (m_axi_wvalid)
  );

  integer lane;
  always @(posedge aclk)
    if (!aresetn) m_axi_bvalid <= 0;
    else if (m_axi_wvalid && m_axi_wready) begin
      for (lane = 0; lane < BUS_BYTES; lane = lane + 1)
        if (m_axi_wstrb[lane]) memory[write_index][8*lane+:8] <= m_axi_wdata[8*lane+:8];
      if (m_axi_wlast != write_last) $fatal(1, "WLAST at word 0x%0h of memory", write_index);
      m_axi_bvalid <= write_last;
    end else if (m_axi_bready) m_axi_bvalid <= 0;

  // Registers ----------------------------------------------------------------------------------

  // Inputs change at the falling edge, and outputs are taken at the rising one.

  task automatic write(input [11:0] address, input [31:0] data, input [3:0] strobe);
    reg took_address, took_data, done;
    reg [1:0] response;
    begin
      @(negedge aclk);
      s_axil_awaddr = address;
      s_axil_awvalid = 1;
      s_axil_wdata = data;
      s_axil_wstrb = strobe;
      s_axil_wvalid = 1;
      s_axil_bready = 1;
      done = 0;
      while (!done) begin
        @(posedge aclk);
        took_address = s_axil_awready;
        took_data = s_axil_wready;
        done = s_axil_bvalid;
        response = s_axil_bresp;
        @(negedge aclk);
        if (took_address) s_axil_awvalid = 0;
        if (took_data) s_axil_wvalid = 0;
      end
      s_axil_bready = 0;
      if (response != 0) $fatal(1, "write to register 0x%03h: response %0d", address, response);
    end
  endtask

  task automatic check(input [11:0] address, input [31:0] data);
    reg took_address, done;
    reg [1:0] response;
    reg [31:0] value;
    begin
      @(negedge aclk);
      s_axil_araddr = address;
      s_axil_arvalid = 1;
      s_axil_rready = 1;
      done = 0;
      while (!done) begin
        @(posedge aclk);
        took_address = s_axil_arready;
        done = s_axil_rvalid;
        response = s_axil_rresp;
        value = s_axil_rdata;
        @(negedge aclk);
        if (took_address) s_axil_arvalid = 0;
      end
      s_axil_rready = 0;
      if (response != 0) $fatal(1, "read of register 0x%03h: response %0d", address, response);
      if (value !== data)
        $fatal(1, "register 0x%03h: 0x%08h, expected 0x%08h", address, value, data);
    end
  endtask

  function automatic [31:0] memory_32(input integer address);
    memory_32 = memory[address / BUS_BYTES][8*(address % BUS_BYTES)+:32];
  endfunction

  // Test ---------------------------------------------------------------------------------------

  integer cycles = 0;
  always @(posedge aclk) begin
    cycles <= cycles + 1;
    if (cycles == MAX_CYCLES) $fatal(1, "no end after %0d cycles", MAX_CYCLES);
  end

  integer word;
  initial begin
    $readmemh("smoke_memory.hex", memory);
    $readmemh("smoke_results.hex", expected);
    s_axil_awaddr = 0;
    s_axil_awvalid = 0;
    s_axil_awprot = 0;
    s_axil_wdata = 0;
    s_axil_wstrb = 0;
    s_axil_wvalid = 0;
    s_axil_bready = 0;
    s_axil_araddr = 0;
    s_axil_arvalid = 0;
    s_axil_arprot = 0;
    s_axil_rready = 0;
    repeat (8) @(negedge aclk);
    aresetn = 1;

    // Identity and parameters of the build.
@checks@
    // Byte strobes.
    write(@scratch@, 32'h01234567, 4'b1111);
    write(@scratch@, 32'hffeeddcc, 4'b0110);
    check(@scratch@, 32'h01eedd67);

    // A ring of one job.
    write(@ring_lo@, RING, 4'b1111);
    write(@completion_lo@, COMPLETIONS, 4'b1111);
    write(@ring_size@, 0, 4'b1111);
    write(@mask@, 3, 4'b1111);
    write(@control@, 1, 4'b1111);
    if (interrupt) $fatal(1, "interrupt before the job");
    write(@tail@, 1, 4'b1111);
    while (!interrupt) @(negedge aclk);
    check(@event@, 1);
    check(@error@, 0);
    check(@completed@, 1);
    write(@event@, 1, 4'b1111);
    check(@status@, 0);
    if (interrupt) $fatal(1, "interrupt after it was cleared");

    if (memory_32(COMPLETIONS) != 1) $fatal(1, "completion: not of the first job");
    if (memory_32(COMPLETIONS + 4) != TAG) $fatal(1, "completion: wrong tag");
    if (memory_32(COMPLETIONS + 8) != 0)
      $fatal(1, "completion: error %0d", memory_32(COMPLETIONS + 8));
    for (word = 0; word < RESULT_WORDS; word = word + 1)
      if (memory[RESULTS / BUS_BYTES + word] !== expected[word])
        $fatal(1, "result at 0x%0h: 0x%0h, expected 0x%0h", RESULTS + word * BUS_BYTES,
               memory[RESULTS / BUS_BYTES + word], expected[word]);
    $display("smoke test passed: job of %0d cycles", memory_32(COMPLETIONS + @cycles_at@));
    $finish;
  end
endmodule

// One burst at a time: takes its address, then counts its beats. Ends the simulation when a burst
// is not one that the unit may send.
module smoke_burst #(
  parameter integer BUS_BYTES = 8,
  parameter integer MEMORY_WORDS = 1,
  parameter integer ID_WIDTH = 1
) (
  input wire clk,
  input wire reset_n,
  input wire [ID_WIDTH-1:0] id,
  input wire [63:0] address,
  input wire [7:0] length,
  input wire [2:0] size,
  input wire [1:0] kind,
  input wire valid,
  output wire ready,
  output reg [ID_WIDTH-1:0] beat_id,
  output reg [31:0] beat_index,
  output wire beat_last,
  output wire beat_valid,
  input wire beat_ready
);
  reg [8:0] left;

  assign ready = left == 0;
  assign beat_valid = left != 0;
  assign beat_last = left == 1;

  always @(posedge clk)
    if (!reset_n) left <= 0;
    else if (valid && ready) begin
      if (kind != 1 || (1 << size) != BUS_BYTES || address % BUS_BYTES != 0)
        $fatal(1, "burst at 0x%0h: kind %0d, size %0d", address, kind, size);
      if (address % 4096 + (length + 1) * BUS_BYTES > 4096)
        $fatal(1, "burst at 0x%0h of %0d beats crosses 4 KiB", address, length + 1);
      if (address / BUS_BYTES + length >= MEMORY_WORDS)
        $fatal(1, "burst at 0x%0h ends behind memory", address);
      beat_id <= id;
      beat_index <= address / BUS_BYTES;
      left <= length + 1;
    end else if (beat_valid && beat_ready) begin
      beat_index <= beat_index + 1;
      left <= left - 1;
    end
endmodule
