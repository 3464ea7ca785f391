// Stands for the unit in tests of the simulated device: plays lines that the host has written on
// AR, AW and W (and AR of the second read port), and logs every transfer.
//
// The test replaces DATA_MSB, STRB_MSB, SCRATCH, and removes the second port if the unit has none.
// Line of a channel: word 0 = {id[3:0], 3'b0, last, burst[1:0], 1'b0, size[2:0], length or strobe
// [7:0], 6'b0, hold, valid} from bit 27 down; words 1, 2: address or data. A line with `hold` is
// shown until it is accepted, one without for one cycle.
module moska (
  input aclk, input aresetn, output interrupt,
  input [11:0] s_axil_awaddr, input [2:0] s_axil_awprot, input s_axil_awvalid,
  output s_axil_awready, input [31:0] s_axil_wdata, input [3:0] s_axil_wstrb,
  input s_axil_wvalid, output s_axil_wready, output [1:0] s_axil_bresp, output s_axil_bvalid,
  input s_axil_bready, input [11:0] s_axil_araddr, input [2:0] s_axil_arprot,
  input s_axil_arvalid, output s_axil_arready, output [31:0] s_axil_rdata,
  output [1:0] s_axil_rresp, output s_axil_rvalid, input s_axil_rready,
  output [3:0] m_axi_arid, output [63:0] m_axi_araddr, output [7:0] m_axi_arlen,
  output [2:0] m_axi_arsize, output [1:0] m_axi_arburst, output [3:0] m_axi_arcache,
  output [2:0] m_axi_arprot, output m_axi_arvalid, input m_axi_arready,
  input [3:0] m_axi_rid, input [DATA_MSB:0] m_axi_rdata, input [1:0] m_axi_rresp,
  input m_axi_rlast, input m_axi_rvalid, output m_axi_rready,
  output [3:0] m_axi_awid, output [63:0] m_axi_awaddr, output [7:0] m_axi_awlen,
  output [2:0] m_axi_awsize, output [1:0] m_axi_awburst, output [3:0] m_axi_awcache,
  output [2:0] m_axi_awprot, output m_axi_awvalid, input m_axi_awready,
  output [DATA_MSB:0] m_axi_wdata, output [STRB_MSB:0] m_axi_wstrb, output m_axi_wlast,
  output m_axi_wvalid, input m_axi_wready,
`ifdef VALUES
  output m_axi_v_arid, output [63:0] m_axi_v_araddr, output [7:0] m_axi_v_arlen,
  output [2:0] m_axi_v_arsize, output [1:0] m_axi_v_arburst, output [3:0] m_axi_v_arcache,
  output [2:0] m_axi_v_arprot, output m_axi_v_arvalid, input m_axi_v_arready,
  input m_axi_v_rid, input [DATA_MSB:0] m_axi_v_rdata, input [1:0] m_axi_v_rresp,
  input m_axi_v_rlast, input m_axi_v_rvalid, output m_axi_v_rready,
`endif
  input [3:0] m_axi_bid, input [1:0] m_axi_bresp, input m_axi_bvalid, output m_axi_bready
);
  localparam COPIES = (DATA_MSB + 1) / 64;

  // Registers ------------------------------------------------------------------------------------
  // 0x004 go, interrupt, rready; 0x008 faults; 0x00C ARVALID is stuck at 1, also in reset; 0x020.. words of a line; 0x02C {channel, line};
  // 0x030 line of the log; 0x034 lines in it; 0x040.. words of a line of the log.
  reg [31:0] scratch, log_at;
  reg [2:0] control;
  reg stuck;
  reg [4:0] faults;  // 0 rdata changes, 1 rvalid drops, 2 bvalid drops, 3 bresp changes, 4 stray b
  reg [31:0] stage [0:2];
  reg b_full, r_full;
  reg [1:0] b_code, r_code;
  reg [31:0] r_word;
  wire take_write = s_axil_awvalid && s_axil_wvalid && !b_full;
  wire take_read = s_axil_arvalid && !r_full;
  // 0xEE0 answers SLVERR, 0xEE4 never.
  wire write_lost = s_axil_awaddr == 12'hEE4, read_lost = s_axil_araddr == 12'hEE4;
  assign s_axil_awready = take_write, s_axil_wready = take_write, s_axil_arready = take_read;
  assign s_axil_bvalid = b_full, s_axil_bresp = b_code;
  assign s_axil_rvalid = r_full, s_axil_rdata = r_word, s_axil_rresp = r_code;
  assign interrupt = control[1];

  reg [95:0] lines [0:255];
  reg [191:0] transfers [0:1023];
  reg [31:0] n_transfers, cycle;
  wire [191:0] logged = transfers[log_at[9:0]];

  always @(posedge aclk) begin
    if (b_full && s_axil_bready) b_full <= 0;
    if (r_full && s_axil_rready) r_full <= 0;
    if (r_full && !s_axil_rready && faults[0]) r_word <= ~r_word;
    if (r_full && !s_axil_rready && faults[1]) r_full <= 0;
    if (b_full && !s_axil_bready && faults[2]) b_full <= 0;
    if (b_full && !s_axil_bready && faults[3]) b_code <= ~b_code;
    if (faults[4] && !b_full) begin
      b_full <= 1;
      b_code <= 0;
      faults[4] <= 0;
    end
    if (take_write) begin
      b_full <= !write_lost;
      b_code <= s_axil_awaddr == 12'hEE0 ? 2 : 0;
      case (s_axil_awaddr)
        12'h004: control <= s_axil_wdata[2:0];
        12'h008: faults <= s_axil_wdata[4:0];
        12'h00C: stuck <= s_axil_wdata[0];
        12'hSCRATCH: scratch <= s_axil_wdata;
        12'h020: stage[0] <= s_axil_wdata;
        12'h024: stage[1] <= s_axil_wdata;
        12'h028: stage[2] <= s_axil_wdata;
        12'h02C: lines[s_axil_wdata[7:0]] <= {stage[2], stage[1], stage[0]};
        12'h030: log_at <= s_axil_wdata;
      endcase
    end
    if (take_read) begin
      r_full <= !read_lost;
      r_code <= s_axil_araddr == 12'hEE0 ? 2 : 0;
      case (s_axil_araddr)
        12'h000: r_word <= 32'h4B534F4D;
        12'hSCRATCH: r_word <= scratch;
        12'h034: r_word <= n_transfers;
        12'h040: r_word <= logged[31:0];
        12'h044: r_word <= logged[63:32];
        12'h048: r_word <= logged[95:64];
        12'h04C: r_word <= logged[127:96];
        12'h050: r_word <= logged[159:128];
        12'h054: r_word <= logged[191:160];
        default: r_word <= 0;
      endcase
    end
    if (!aresetn) begin
      b_full <= 0;
      r_full <= 0;
      control <= 0;
      faults <= 0;
      scratch <= 0;
    end
  end

  // Channels -------------------------------------------------------------------------------------
  // 64 lines each: AR, AW, W, AR of the second port.
  wire go = control[0];
  wire [3:0] ready;
  reg [6:0] at [0:3];
  integer c;
  always @(posedge aclk)
    for (c = 0; c < 4; c = c + 1)
      if (!go) at[c] <= 0;
      else if (!at[c][6] && (ready[c] || !lines[{c[1:0], at[c][5:0]}][1])) at[c] <= at[c] + 1;

  wire [95:0] ar = go && !at[0][6] ? lines[{2'd0, at[0][5:0]}] : 0;
  wire [95:0] aw = go && !at[1][6] ? lines[{2'd1, at[1][5:0]}] : 0;
  wire [95:0] w = go && !at[2][6] ? lines[{2'd2, at[2][5:0]}] : 0;
  wire [95:0] arv = go && !at[3][6] ? lines[{2'd3, at[3][5:0]}] : 0;
  assign m_axi_arvalid = ar[0] | stuck, m_axi_araddr = ar[95:32], m_axi_arlen = ar[15:8];
  assign m_axi_arsize = ar[18:16], m_axi_arburst = ar[21:20], m_axi_arid = ar[27:24];
  assign m_axi_arcache = 3, m_axi_arprot = 0;
  assign m_axi_awvalid = aw[0], m_axi_awaddr = aw[95:32], m_axi_awlen = aw[15:8];
  assign m_axi_awsize = aw[18:16], m_axi_awburst = aw[21:20], m_axi_awid = aw[27:24];
  assign m_axi_awcache = 3, m_axi_awprot = 0;
  assign m_axi_wvalid = w[0], m_axi_wdata = {COPIES{w[95:32]}}, m_axi_wstrb = {COPIES{w[15:8]}};
  assign m_axi_wlast = w[22];
  // RREADY waits for RVALID: the path without a register that a unit may have.
  assign m_axi_rready = control[2] && m_axi_rvalid, m_axi_bready = 1;
  assign ready = {v_ready, m_axi_wready, m_axi_awready, m_axi_arready};
  wire v_ready, v_valid, v_last;
  wire [1:0] v_resp;
  wire [63:0] v_data;
`ifdef VALUES
  assign m_axi_v_arvalid = arv[0], m_axi_v_araddr = arv[95:32], m_axi_v_arlen = arv[15:8];
  assign m_axi_v_arsize = arv[18:16], m_axi_v_arburst = arv[21:20], m_axi_v_arid = arv[24];
  assign m_axi_v_arcache = 3, m_axi_v_arprot = 0, m_axi_v_rready = control[2];
  assign v_ready = m_axi_v_arready, v_valid = m_axi_v_rvalid, v_last = m_axi_v_rlast;
  assign v_resp = m_axi_v_rresp, v_data = m_axi_v_rdata[63:0];
`else
  assign v_ready = 0, v_valid = 0, v_last = 0, v_resp = 0, v_data = 0;
`endif

  // Log ------------------------------------------------------------------------------------------
  wire [6:0] events = {
    v_valid && control[2], arv[0] && v_ready, m_axi_bvalid, m_axi_wvalid && m_axi_wready,
    m_axi_awvalid && m_axi_awready, m_axi_rvalid && m_axi_rready, m_axi_arvalid && m_axi_arready
  };
  always @(posedge aclk) begin
    cycle <= go ? cycle + 1 : 0;
    if (|events) begin
      transfers[n_transfers[9:0]] <= {
        v_data, m_axi_rdata[DATA_MSB -: 64],
        3'b0, v_last, v_resp, 3'b0, m_axi_bresp, 1'b0, m_axi_bid, 1'b0, m_axi_rlast, m_axi_rresp,
        m_axi_rid, 1'b0, events, cycle
      };
      n_transfers <= n_transfers + 1;
    end
    if (!aresetn) n_transfers <= 0;
  end
endmodule
