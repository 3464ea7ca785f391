  wire [31:0] @bus@_index;
  assign @bus@_rdata = memory[@bus@_index];
  assign @bus@_rresp = 0;

  smoke_burst #(
    .BUS_BYTES (BUS_BYTES),
    .MEMORY_WORDS (MEMORY_WORDS),
    .ID_WIDTH (@id_width@)
  ) @bus@_reads (
    .clk (aclk),
    .reset_n (aresetn),
    .id (@bus@_arid),
    .address (@bus@_araddr),
    .length (@bus@_arlen),
    .size (@bus@_arsize),
    .kind (@bus@_arburst),
    .valid (@bus@_arvalid),
    .ready (@bus@_arready),
    .beat_id (@bus@_rid),
    .beat_index (@bus@_index),
    .beat_last (@bus@_rlast),
    .beat_valid (@bus@_rvalid),
    .beat_ready (@bus@_rready)
  );
